"""Prefect blocks: Secret blocks of secret inputs, and the RemoteFileSystem block of an archive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.filesystems import RemoteFileSystem
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import SecretStr

from prefect_executions.errors import SecretError, SettingsError
from prefect_executions.methods.secrets import is_secret_reference


def resolve_secret(name: str, reference: object, environment: Mapping[str, str]) -> SecretStr:
    """Return the secret that *reference* names: a Prefect Secret block, or ``env:NAME``.

    Raises:
        SecretError: If it names nothing. The message has the input's *name* and
            never the reference, which may be a secret in plain text.
    """
    if not isinstance(reference, str) or not is_secret_reference(reference):
        raise SecretError(
            f"input '{name}' is a secret: give the name of a Prefect Secret block or env:NAME, never the value itself. "
            "Create a block in the Prefect UI (Blocks, Secret)."
        )
    if reference.startswith("env:"):
        value: Any = environment.get(reference.removeprefix("env:"))
    else:
        value = _load_secret_block(name, reference)
    if value is None:
        raise SecretError(f"input '{name}': its environment variable is not set where the Method runs")
    return SecretStr(value if isinstance(value, str) else str(value))


def check_secret(name: str, reference: object) -> None:
    """Refuse a secret input that is not a valid reference, before a flow run is created.

    ``env:NAME`` is accepted unchecked: the worker's variables are not visible here.

    Raises:
        SecretError: If it is a plain value; the message does not repeat it.
    """
    if isinstance(reference, str) and reference.startswith("env:") and is_secret_reference(reference):
        return
    resolve_secret(name, reference, {})


def archive_block(name: str) -> tuple[str, dict[str, Any]]:
    """Return the URL and the fsspec options of a Prefect RemoteFileSystem block.

    Raises:
        SettingsError: If there is no such block, or it is of another type.
    """
    slug = name if "/" in name else f"remote-file-system/{name}"
    try:
        block: object = run_coro_as_sync(Block.aload(slug))
    except ValueError as error:
        raise SettingsError(
            f"EXECUTIONS_ARCHIVE=block:{name}: Prefect has no block {slug}. Create it, or name another."
        ) from error
    if not isinstance(block, RemoteFileSystem):
        raise SettingsError(f"EXECUTIONS_ARCHIVE=block:{name}: {slug} is not a RemoteFileSystem block; name another.")
    return block.basepath, dict(block.settings)


def _load_secret_block(name: str, block: str) -> Any:
    """Load a Secret block. The given *block* may be a secret by mistake, and Prefect's errors repeat it."""
    loaded, failure = None, ""
    try:
        loaded = run_coro_as_sync(Secret.aload(block))
    except ValueError:
        failure = (
            "Prefect has no Secret block of the given name. Give the name of a Secret block or env:NAME, "
            "never the secret itself."
        )
    except Exception as error:  # noqa: BLE001 - the text of any error may hold the secret
        failure = f"the Secret block cannot be read from Prefect's API ({type(error).__name__}). Try again later."
    if failure:  # raised here, so that Prefect's error is not its cause
        raise SecretError(f"input '{name}': {failure}")
    return loaded.get() if isinstance(loaded, Secret) else None
