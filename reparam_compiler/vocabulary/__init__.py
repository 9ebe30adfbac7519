"""What is known of dtypes and ops, once: the rows that frontends, passes and runners take their tables from.

    dtypes      a row a dtype
    pointwise, elementwise, movement, structured, numbers      a row an op
    resolve     from what a model calls to its row, by identity

A new function of elements costs one row in `pointwise.py`: both frontends, the interpreter and pruning take it from there.
"""
