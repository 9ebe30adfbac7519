"""What TVM misreads of ONNX, or does not know, in terms of what it reads rightly: a file a family, a rule an op.

    ModelProto --prepare--> ModelProto of one opset, sizes known, weights as inputs --TVM's from_onnx--> Relax

`opsets` brings old forms of an op to the newest, `graph` knows types and constants, `rules` is the table.
"""
