"""Ops of torch that TVM's importer misreads or does not know, said in Relax ops and loops that compute what torch computes.

`table.py` has what a converter is; every other file is a family of ops; `program.py` brings a program to the importer.
"""
