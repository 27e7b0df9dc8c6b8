"""The ledger: an index of executions in SQLite or PostgreSQL, and the only room that knows SQL.

Law: it is always an index. Every row comes from an execution's documents and
from what the archive says of it, so a lost ledger is rebuilt with the same rows.
"""
