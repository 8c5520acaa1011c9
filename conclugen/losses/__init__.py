"""One loss, one file: a pure function with its equation and source, and a thin module that owns state.

Every loss returns this rank's share: the sum over its own rows over the global count (see `conclugen.distributed`).
"""
