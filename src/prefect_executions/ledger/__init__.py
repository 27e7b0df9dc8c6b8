"""The ledger: an index of executions in SQLite or PostgreSQL, and the only room that knows SQL.

Law: it is always an index. Every row comes from an execution's documents and
from what the archive says of it, so a lost ledger is rebuilt with the same rows.
"""

from prefect_executions.ledger.index import Bulk, Ledger
from prefect_executions.ledger.rows import ArchiveState, Came, Handed, MethodRow, Named, Page, Row

__all__ = ["ArchiveState", "Bulk", "Came", "Handed", "Ledger", "MethodRow", "Named", "Page", "Row"]
