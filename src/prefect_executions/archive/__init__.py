"""Where sealed bundles are kept: object storage behind one narrow interface, and what lies where in it."""

from prefect_executions.archive.imports import Imported
from prefect_executions.archive.keeping import Archive, Content, Sealing, Swept, goes_along, open_archive
from prefect_executions.archive.marks import Marks, OpenMark, SealMark
from prefect_executions.archive.reading import ArchivedBundle
from prefect_executions.archive.removals import Removed
from prefect_executions.archive.seals import ArchivedData, Seal
from prefect_executions.archive.store import Head, Store, honours_create_if_absent
from prefect_executions.archive.urls import open_store

__all__ = [
    "Archive",
    "ArchivedBundle",
    "ArchivedData",
    "Content",
    "Head",
    "Imported",
    "Marks",
    "OpenMark",
    "Removed",
    "Seal",
    "SealMark",
    "Sealing",
    "Store",
    "Swept",
    "goes_along",
    "honours_create_if_absent",
    "open_archive",
    "open_store",
]
