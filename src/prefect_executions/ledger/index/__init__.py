"""The column index: a copy of the ledger as typed columns, which answers searches exactly and in milliseconds.

Law: the index is a cache. It follows the ledger's change feed before each query; it can be
deleted at any time, and is built again from the ledger. Only this package imports NumPy.
"""
