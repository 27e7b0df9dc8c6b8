"""Reads the Git repository around a file with the program git; never writes to it.

Every command runs without optional locks, without refreshing the index, without
prompts and without network access.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO

from prefect_executions.capture.secrets import redact_url, redact_urls

_TIME_LIMIT = 30.0
_LONGEST_SUBJECT = 500
# A file system's clock ticks every 10 ms or faster: a file changed within this time may change again unnoticed.
_SETTLED = 50_000_000
_ENVIRONMENT_VARIABLES = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "LC_ALL": "C",
}
_OPTIONS = (
    "--no-optional-locks",
    "--no-pager",
    # In a container the repository often belongs to another user; reading it is safe.
    *("-c", "safe.directory=*"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.quotePath=false"),
    # Otherwise `git diff` writes the refreshed index.
    *("-c", "diff.autoRefreshIndex=false"),
)

# `git apply` must accept the diff, and equal changes must have equal digests, whatever the user's configuration says.
_DIFF_OPTIONS = (
    *("--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--binary", "--full-index"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "--inter-hunk-context=0"),
    *("--diff-algorithm=myers", "--indent-heuristic", "-O/dev/null"),
    # Without the mark "-dirty", which no commit has.
    *("--submodule=short", "--ignore-submodules=dirty"),
)
_DIFF_SETTINGS = (
    *("-c", "diff.noPrefix=false"),
    *("-c", "diff.mnemonicPrefix=false"),
    *("-c", "diff.relative=false"),
    *("-c", "diff.suppressBlankEmpty=false"),
    *("-c", "core.safecrlf=false"),
    *("-c", "core.bigFileThreshold=512m"),
    *("-c", "core.compression=-1"),
)
_DRIVER_SETTINGS = r"^diff\..*\.(binary|algorithm)$"
_HUNK = re.compile(rb"@@ -[0-9,]+ \+[0-9,]+ @@(?= )")

INSTALLED = ("site-packages", "dist-packages")
"""Names of the folders into which installers write packages."""

_ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")

Stamp = tuple[int, int, int, int, int] | None


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """The state of a working tree, with stamps of the files that show whether it is still current."""

    root: str
    remote: str | None = None
    commit: str | None = None
    branch: str | None = None
    author: str | None = None
    subject: str | None = None
    changed: tuple[str, ...] = ()
    """Tracked files that differ from the commit, relative to the root."""
    untracked: frozenset[str] = frozenset()
    """Requested files that Git neither tracks nor ignores."""
    diff: bytes | None = None
    """The diff from the commit, unless it exceeds the limit."""
    diff_sha256: str | None = None
    stamps: dict[str, Stamp] = field(default_factory=dict)
    settled: bool = False
    """Whether the stamps will show the next change."""

    def fresh(self) -> bool:
        """Whether all stamps are unchanged; costs one ``lstat`` per stamp."""
        return self.settled and all(stamp(path) == recorded for path, recorded in self.stamps.items())


def find_root(file: str) -> str | None:
    """Return the nearest folder above *file* that has a ``.git``, unless an environment is nearer.

    A virtual environment often lies inside a repository; its packages are not the repository's code.
    """
    folder = os.path.dirname(file)  # noqa: PTH120 - runs for every flow run; a Path costs ten times the lstat
    while True:
        if stamp(f"{folder}/.git") is not None:
            return folder or "/"
        parent = os.path.dirname(folder)  # noqa: PTH120 - as above
        if parent == folder or is_environment(folder):
            return None
        folder = parent


def is_environment(folder: str) -> bool:
    """Whether *folder* contains installed packages: ``site-packages``, a virtual or a Conda environment."""
    if os.path.basename(folder) in INSTALLED:  # noqa: PTH119 - as above
        return True
    return any(stamp(f"{folder}/{mark}") is not None for mark in _ENVIRONMENT_MARKS)


def stamp(path: str) -> Stamp:
    """Return times, size, inode and mode of *path*, which change with its content; None if it does not exist."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode


def git_program() -> str | None:
    """Return the path of the program git, or None."""
    with suppress(Exception):  # an unreadable folder on the path
        return shutil.which("git")
    return None


def read_checkout(root: str, files: Sequence[str], diff_limit: int) -> Checkout:
    """Read the state of the working tree at *root*.

    *files*, relative to the root, are checked for being tracked or ignored.

    Raises:
        OSError: If Git is missing.
        subprocess.SubprocessError: If Git fails or takes too long.
    """
    program = git_program()
    if program is None:
        raise FileNotFoundError("the program git is missing")
    return _read(_Git(program, root), files, diff_limit)


class _Git:
    def __init__(self, program: str, root: str) -> None:
        self.root = root
        self._command = [program, *_OPTIONS, "-C", root]
        # A GIT_DIR inherited from a hook would point to another repository.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        # With an empty .git, Git must not search in the folders above.
        self._environment = inherited | _ENVIRONMENT_VARIABLES | {"GIT_CEILING_DIRECTORIES": os.path.dirname(root)}  # noqa: PTH120

    def output(self, *arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - git, with our own arguments
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIME_LIMIT,
            check=True,
        )
        return os.fsdecode(done.stdout)

    def output_or_empty(self, *arguments: str) -> str:
        try:
            return self.output(*arguments)
        except subprocess.CalledProcessError:
            return ""

    def write(self, target: IO[bytes], *arguments: str) -> None:
        subprocess.run(  # noqa: S603 - git, with our own arguments
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.DEVNULL,
            timeout=_TIME_LIMIT,
            check=True,
        )


def _read(git: _Git, files: Sequence[str], diff_limit: int) -> Checkout:
    # One command per answer: a line break in the folder name would make several answers ambiguous.
    folders = [
        git.output("rev-parse", which).removesuffix("\n") for which in ("--absolute-git-dir", "--git-common-dir")
    ]
    tracked, has_submodules = _tracked(git)
    watched = [*_git_files(git.root, folders), *(f"{git.root}/{name}" for name in tracked)]
    # Before Git reads: a change in between then shows up as a change.
    before = time.time_ns()
    stamps = {path: stamp(path) for path in watched}
    headers, changed = _status(git)
    commit = headers.get("branch.oid")
    commit = None if commit == "(initial)" else commit
    diff, digest = _diff(git, changed, diff_limit) if commit and changed else (None, None)
    tracked_names = set(tracked)
    untracked = [name for name in files if name not in tracked_names]
    others = git.output("ls-files", "-z", "--others", "--exclude-standard", "--", *untracked) if untracked else ""
    branch = headers.get("branch.head")
    author, subject = _author_and_subject(git, commit) if commit else (None, None)
    return Checkout(
        root=git.root,
        remote=redact_url(git.output_or_empty("config", "--get", "remote.origin.url").strip()) or None,
        commit=commit,
        branch=None if branch == "(detached)" else branch,
        author=author,
        subject=subject,
        changed=changed,
        untracked=frozenset(others.split("\0")) - {""},
        diff=diff,
        diff_sha256=digest,
        stamps=stamps,
        # A submodule has its own repository, which has no stamps here.
        settled=not has_submodules and _newest(stamps) < before - _SETTLED,
    )


def _tracked(git: _Git) -> tuple[list[str], bool]:
    entries = [line.partition("\t") for line in git.output("ls-files", "--stage", "-z").split("\0") if line]
    return [name for _, _, name in entries], any(mode.startswith("160000") for mode, _, _ in entries)


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
    options = ("--untracked-files=no", "--no-renames", "--ignore-submodules=untracked")
    status = git.output("status", "--porcelain=v2", "--branch", "-z", *options)
    headers: dict[str, str] = {}
    changed: list[str] = []
    for line in filter(None, status.split("\0")):
        if line.startswith("# "):
            name, _, value = line[2:].partition(" ")
            headers[name] = value
        elif line[0] in "1u":
            # git-status(1), porcelain 2: eight fields before the path, or ten for an unmerged one.
            changed.append(line.split(" ", 8 if line[0] == "1" else 10)[-1])
    return headers, tuple(sorted(changed))


def _author_and_subject(git: _Git, commit: str) -> tuple[str | None, str | None]:
    """Return the author's name, without the address, and the first line of the message."""
    settings = ("-c", "log.showSignature=false", "-c", "i18n.logOutputEncoding=UTF-8")
    author, _, subject = git.output_or_empty(*settings, "log", "-1", "--format=%an%x00%s", commit, "--").partition("\0")
    return _shown(author), _shown(redact_urls(subject))


def _shown(text: str) -> str | None:
    line = " ".join(os.fsencode(text).decode(errors="replace").split())
    return (line if len(line) <= _LONGEST_SUBJECT else f"{line[: _LONGEST_SUBJECT - 1]}…") or None


def _diff(git: _Git, changed: Sequence[str], limit: int) -> tuple[bytes | None, str | None]:
    """Return the diff from HEAD, unless it is larger than *limit*, and its digest.

    Both depend only on HEAD and the working tree, and not on the user's configuration.
    """
    # Too many paths exceed the length of a command line; Git then finds the changes itself.
    paths = ["--", *changed] if len(changed) <= 1000 else []  # noqa: PLR2004
    with tempfile.TemporaryFile() as target:
        try:
            git.write(target, *_driver_options(git), *_DIFF_SETTINGS, "diff", *_DIFF_OPTIONS, "HEAD", *paths)
        except subprocess.SubprocessError:  # a partial clone without the old content
            return None, None
        target.seek(0)
        digest, size, kept = sha256(), 0, list[bytes]()
        for line in target:
            # The text after a hunk's line numbers is for people; it depends on Git's version and configuration.
            hunk = _HUNK.match(line)
            part = hunk[0] + b"\n" if hunk else line
            digest.update(part)
            size += len(part)
            if size <= limit:
                kept.append(part)
    return (b"".join(kept) if size <= limit else None), digest.hexdigest()


def _driver_options(git: _Git) -> Iterator[str]:
    """Yield options that reset the user's settings of diff drivers, which attributes assign to files."""
    for key in git.output_or_empty("config", "--name-only", "-z", "--get-regexp", _DRIVER_SETTINGS).split("\0"):
        if key:
            yield from ("-c", f"{key}={'myers' if key.endswith('.algorithm') else 'auto'}")


def _newest(stamps: dict[str, Stamp]) -> int:
    return max((max(recorded[0], recorded[1]) for recorded in stamps.values() if recorded), default=0)
