"""The Git repository around a file: read by Git itself, never written to.

Every command runs without optional locks and without the features by which
reading writes (the index is not refreshed), asks nobody, and calls no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO

from prefect_executions.capture.secrets import redact_url

_TIME_LIMIT = 30.0
_BLOCK = 1 << 20
# A file system's clock ticks in up to 10 ms; what changed so shortly ago may change again without a trace.
_SETTLED = 50_000_000
_NEVER_ASK = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "LC_ALL": "C",
}
_OPTIONS = (
    "--no-optional-locks",
    "--no-pager",
    # A container often sees a repository that another user owns; we only read.
    *("-c", "safe.directory=*"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.quotePath=false"),
    # Without it `git diff` writes the index that it has refreshed.
    *("-c", "diff.autoRefreshIndex=false"),
)

INSTALLED = ("site-packages", "dist-packages")
"""Names of the folders that installers write packages to."""

_ENVIRONMENT = ("pyvenv.cfg", "conda-meta")

Stamp = tuple[int, int, int, int, int] | None


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """What Git says about a working tree, and by which files one sees whether that is still true."""

    root: str
    remote: str | None = None
    commit: str | None = None
    branch: str | None = None
    changed: tuple[str, ...] = ()
    """Tracked files that differ from the commit, relative to the root."""
    untracked: frozenset[str] = frozenset()
    """Those of the files asked about that Git neither tracks nor ignores."""
    diff: bytes | None = None
    """The diff from the commit, when it is not above the limit."""
    diff_sha256: str | None = None
    stamps: dict[str, Stamp] = field(default_factory=dict)
    settled: bool = False
    """Whether the stamps can be trusted to show the next change."""

    def fresh(self) -> bool:
        """Whether nothing has changed since: one ``lstat`` for each stamp."""
        return self.settled and all(stamp(path) == seen for path, seen in self.stamps.items())


def find_root(file: str) -> str | None:
    """Return the nearest folder above *file* that has a ``.git``, unless an environment is nearer.

    A virtual environment often lies inside a repository; its packages are not the repository's code.
    """
    folder = os.path.dirname(file)  # noqa: PTH120 - on every run; a Path costs ten times the lstat
    while True:
        if stamp(f"{folder}/.git") is not None:
            return folder or "/"
        parent = os.path.dirname(folder)  # noqa: PTH120 - as above
        if parent == folder or is_environment(folder):
            return None
        folder = parent


def is_environment(folder: str) -> bool:
    """Return whether *folder* holds installed packages: ``site-packages``, a virtual environment, one of Conda."""
    if os.path.basename(folder) in INSTALLED:  # noqa: PTH119 - as above
        return True
    return any(stamp(f"{folder}/{mark}") is not None for mark in _ENVIRONMENT)


def stamp(path: str) -> Stamp:
    """Return what of *path* changes with its content, or None if there is no such file."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode


def git_program() -> str | None:
    """Return where Git is installed."""
    return shutil.which("git")


def read_checkout(root: str, files: Sequence[str], diff_limit: int) -> Checkout | None:
    """Ask Git about the working tree at *root*, or return None where Git is missing or refuses.

    *files*, relative to the root, are those of which it matters whether Git tracks them.
    """
    git = git_program()
    if git is None:
        return None
    asked = _Git(git, root)
    try:
        return _read(asked, files, diff_limit)
    except (subprocess.SubprocessError, OSError):
        return None


class _Git:
    def __init__(self, program: str, root: str) -> None:
        self.root = root
        self._command = [program, *_OPTIONS, "-C", root]
        # A hook's GIT_DIR would lead to another repository than the one around the file.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        # An empty .git must not lead to a repository further up.
        self._environment = inherited | _NEVER_ASK | {"GIT_CEILING_DIRECTORIES": os.path.dirname(root)}  # noqa: PTH120

    def ask(self, *arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - git, with arguments of our own
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIME_LIMIT,
            check=True,
        )
        return os.fsdecode(done.stdout)

    def ask_or_nothing(self, *arguments: str) -> str:
        try:
            return self.ask(*arguments)
        except subprocess.CalledProcessError:
            return ""

    def write(self, target: IO[bytes], *arguments: str) -> None:
        subprocess.run(  # noqa: S603 - git, with arguments of our own
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.DEVNULL,
            timeout=_TIME_LIMIT,
            check=True,
        )


def _read(git: _Git, files: Sequence[str], diff_limit: int) -> Checkout:
    # One by one: in a folder whose name has a line break, several answers could not be told apart.
    folders = [git.ask("rev-parse", which).removesuffix("\n") for which in ("--absolute-git-dir", "--git-common-dir")]
    tracked, has_submodules = _tracked(git)
    watched = [*_git_files(git.root, folders), *(f"{git.root}/{name}" for name in tracked)]
    # Before Git looks: what changes between is then seen as a change, not missed.
    before = time.time_ns()
    stamps = {path: stamp(path) for path in watched}
    headers, changed = _status(git)
    commit = headers.get("branch.oid")
    commit = None if commit == "(initial)" else commit
    diff, digest = _diff(git, changed, diff_limit) if commit and changed else (None, None)
    known = set(tracked)
    unknown = [name for name in files if name not in known]
    others = git.ask("ls-files", "-z", "--others", "--exclude-standard", "--", *unknown) if unknown else ""
    branch = headers.get("branch.head")
    return Checkout(
        root=git.root,
        remote=redact_url(git.ask_or_nothing("config", "--get", "remote.origin.url").strip()) or None,
        commit=commit,
        branch=None if branch == "(detached)" else branch,
        changed=changed,
        untracked=frozenset(others.split("\0")) - {""},
        diff=diff,
        diff_sha256=digest,
        stamps=stamps,
        # A submodule's state lies in a repository of its own, which is not watched.
        settled=not has_submodules and _newest(stamps) < before - _SETTLED,
    )


def _tracked(git: _Git) -> tuple[list[str], bool]:
    entries = [line.partition("\t") for line in git.ask("ls-files", "--stage", "-z").split("\0") if line]
    return [name for _, _, name in entries], any(told.startswith("160000") for told, _, _ in entries)


def _git_files(root: str, folders: Sequence[str]) -> list[str]:
    own, common = (os.path.normpath(os.path.join(root, folder)) for folder in folders)  # noqa: PTH118 - as text
    names = ["HEAD", "index", "packed-refs", "config", "reftable/tables.list", "info/exclude"]
    files = [f"{folder}/{name}" for folder in dict.fromkeys((own, common)) for name in names]
    reference = _reference(f"{own}/HEAD")
    return [f"{root}/.git", *files, *([f"{common}/{reference}", f"{own}/{reference}"] if reference else [])]


def _reference(head: str) -> str | None:
    text = Path(head).read_text(errors="replace")
    return text.removeprefix("ref: ").strip() if text.startswith("ref: ") else None


def _status(git: _Git) -> tuple[dict[str, str], tuple[str, ...]]:
    told = git.ask("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=no", "--no-renames")
    headers: dict[str, str] = {}
    changed: list[str] = []
    for line in filter(None, told.split("\0")):
        if line.startswith("# "):
            name, _, value = line[2:].partition(" ")
            headers[name] = value
        elif line[0] in "1u":
            # git-status(1), porcelain 2: eight fields before the path, or ten for an unmerged one.
            changed.append(line.split(" ", 8 if line[0] == "1" else 10)[-1])
    return headers, tuple(sorted(changed))


def _diff(git: _Git, changed: Sequence[str], limit: int) -> tuple[bytes | None, str]:
    # All paths at once may be longer than a command line; then Git finds them again itself.
    paths = ["--", *changed] if len(changed) <= 1000 else []  # noqa: PLR2004
    options = ("--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--binary", "--full-index")
    with tempfile.TemporaryFile() as target:
        git.write(target, "diff", *options, "--submodule=short", "HEAD", *paths)
        size = target.tell()
        target.seek(0)
        digest = sha256()
        kept = b""
        while block := target.read(_BLOCK):
            digest.update(block)
            kept = kept + block if size <= limit else b""
    return (kept if size <= limit else None), digest.hexdigest()


def _newest(stamps: dict[str, Stamp]) -> int:
    return max((max(seen[0], seen[1]) for seen in stamps.values() if seen), default=0)
