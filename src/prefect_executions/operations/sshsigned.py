"""A manifest that somebody signed with ``ssh-keygen -Y sign``, checked against a file of allowed signers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect_executions.bundles.layout import MANIFEST, SSH_SIGNATURE
from prefect_executions.bundles.source import Source
from prefect_executions.bundles.verify import Check
from prefect_executions.errors import BundleError

NAMESPACE = "prefect-executions"
"""What such a signature is for; one that was made for something else does not count."""

SSH_CHECK = "ssh-signature"
_LARGEST = 1 << 26
_SECONDS = 60


def ssh_check(source: Source, allowed: Path) -> Check:
    """Return whether the manifest in *source* is signed by one of those in the file *allowed*."""
    try:
        missing = [path for path in (MANIFEST, SSH_SIGNATURE) if not 0 < source.files.get(path, 0) <= _LARGEST]
        if missing:
            return Check(SSH_CHECK, (f"{missing[0]} is missing",))
        with TemporaryDirectory(prefix="signed-") as folder:
            for path in (MANIFEST, SSH_SIGNATURE):
                Path(folder, path).write_bytes(b"".join(source.blocks(path)))
            return Check(SSH_CHECK, _faults(Path(folder), allowed))
    except (BundleError, OSError, subprocess.TimeoutExpired) as error:
        return Check(SSH_CHECK, (f"{SSH_SIGNATURE} cannot be checked: {error}",))


def _faults(folder: Path, allowed: Path) -> tuple[str, ...]:
    asked = ["-f", str(allowed.absolute()), "-s", str(folder / SSH_SIGNATURE)]
    found = _ssh_keygen(["find-principals", *asked], folder / MANIFEST)
    principals = found.stdout.split("\n")[0].strip()
    if found.returncode or not principals:
        return (f"{SSH_SIGNATURE} is of nobody whom {allowed} allows: {found.stderr.strip()}",)
    told = _ssh_keygen(["verify", "-I", principals.split(",")[0], "-n", NAMESPACE, *asked], folder / MANIFEST)
    return (f"{SSH_SIGNATURE}: {(told.stderr or told.stdout).strip()}",) if told.returncode else ()


def _ssh_keygen(words: list[str], manifest: Path) -> subprocess.CompletedProcess[str]:
    with manifest.open("rb") as stdin:
        return subprocess.run(  # noqa: S603 - no shell, and every word is ours or a path
            ["ssh-keygen", "-Y", *words],  # noqa: S607 - the user's own
            stdin=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
