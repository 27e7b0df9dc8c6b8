"""The ledger: an SQL index of executions, in SQLite or PostgreSQL.

Law: the ledger is only an index. Every row is derived from an execution's documents and
from the archive, so a lost ledger is rebuilt with identical rows. Only this package
contains SQL.
"""
