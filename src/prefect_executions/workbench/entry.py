"""The entry point of the catalog in Python: `open_catalog`, and what the command line opens it with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from prefect_executions.errors import NotFoundError
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench

READ_TIMEOUT = timedelta(seconds=60)
"""Upper limit of the archive timeout for reads: a person waits for them, and the limit for uploads is longer."""


def open_catalog(home: str | Path | None = None, *, archive: str | None = None, ledger: str | None = None) -> Catalog:
    """Open the recorded executions for searches and reads: those that the command line shows.

    Use it as a context manager, or call `Catalog.close`, to close the ledger and to remove
    downloaded files; the end of the process does that, too.

    Args:
        home: The home folder (default: EXECUTIONS_HOME, else ``~/.executions``).
        archive: Where sealed bundles are: a folder or a URL (default: EXECUTIONS_ARCHIVE, else in the home folder).
        ledger: The URL of the index (default: EXECUTIONS_LEDGER, else in the home folder).

    Raises:
        NotFoundError: If the folder *home* does not exist.
        SettingsError: If a setting has an invalid value.
    """
    given = {
        "home": None if home is None else Path(home).expanduser(),
        "archive": archive,
        "ledger": None if ledger is None else SecretStr(ledger),
    }
    if isinstance(given["home"], Path) and not given["home"].is_dir():
        raise NotFoundError(f"the home folder {home} does not exist")
    changes = {name: value for name, value in given.items() if value is not None}
    return catalog_of(Settings.read().model_copy(update=changes))


def catalog_of(settings: Settings) -> Catalog:
    """Return the catalog of the workbench of *settings*."""
    timeout = min(settings.archive_timeout, READ_TIMEOUT)
    workbench = Workbench.of(settings.model_copy(update={"archive_timeout": timeout}), archive_block=archive_block)
    return Catalog(workbench, agent=settings.agent)


def archive_block(name: str) -> tuple[str, Mapping[str, Any]]:
    """Return the URL and the options of a Prefect block that is an archive."""
    # Prefect takes seconds to import; only an archive in a Prefect block needs it.
    from prefect_executions.prefect_api import blocks  # noqa: PLC0415

    return blocks.archive_block(name)
