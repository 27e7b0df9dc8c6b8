"""`executions keys`: the key that seals are signed with, and those of the people whose signature is believed."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from prefect_executions.cli.arguments import Json
from prefect_executions.cli.output import say, show_facts, show_json, show_table
from prefect_executions.settings import Settings

keys = App(name="keys", help="The keys that seals are signed with and checked against.")


@keys.command
def create(*, name: str = "own", as_json: Json = False) -> None:
    """Make a signing key; from now on each seal is signed with it.

    Args:
        name: The name under which its public half is trusted here.
        as_json: One JSON document.
    """
    # Start-up time of the CLI: cryptography comes with it.
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    ring = KeyRing(Settings.read())
    made = ring.create(name)
    if as_json:
        show_json({"id": made.id, "private": ring.private, "public": made.path})
        return
    show_facts([("key", made.id), ("private", str(ring.private)), ("public", str(made.path))])
    say("Keep the private file to yourself; give the public one to those who check what you sign.")
    say(f"Next, for them: executions keys trust {made.path.name} --name YOU")


@keys.command(name="list")
def list_keys(*, as_json: Json = False) -> None:
    """List the keys whose signatures are believed here.

    Args:
        as_json: One JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    found = KeyRing(Settings.read()).people()
    if as_json:
        show_json({"keys": found})
        return
    show_table(
        ("name", "key", "own", "file"), ((one.name, one.id, "own" if one.own else "", one.path) for one in found)
    )
    if not found:
        say("No key is trusted here. Next: executions keys create, or executions keys trust FILE")


@keys.command
def trust(file: Path, /, *, name: str | None = None, as_json: Json = False) -> None:
    """Believe what is signed with a public key.

    Args:
        file: The public key in PEM, as 'executions keys create' and 'openssl pkey -pubout' write it.
        name: The name to remember it by; without one that of the file.
        as_json: One JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    told = KeyRing(Settings.read()).trust(file, name or file.stem)
    if as_json:
        show_json({"key": told})
    else:
        say(f"{told.name} is trusted from now on: {told.id}")
