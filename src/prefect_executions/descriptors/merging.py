"""Several scripts as one, so that they share a process or a container, with marks that say where each begins and ends.

What runs it reads the marks from its standard output and takes them out again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prefect_executions.descriptors.scripts import Script

_BEGIN = """\
# Written by prefect-executions: the scripts of the Method, one after the other.
here=${0%/*}
[ -d "$here" ] && [ -w "$here" ] || here=$(mktemp -d) || exit 125
"""
_KEEP = """\
cat > "$here/{name}" <<'{end}' || exit 125
{text}{end}
"""
_RUN = """\
printf '\\036%s begin %s\\n' '{mark}' {name}
{command} "$here/{name}"
code=$?
printf '\\036%s end %s %s\\n' '{mark}' {name} "$code"
[ "$code" = 0 ] || exit "$code"
"""


class Mark(NamedTuple):
    """The script *name* begins; or it has ended, with an exit code."""

    name: str
    exit_code: int | None


def merged(scripts: Mapping[str, Script], mark: str) -> str:
    """Return one script that runs *scripts* in their order, up to the first that fails, and ends as that one.

    Each is written to a file of its own, because it may be for another shell, and
    none can break what comes after it. *mark* is a word that none of them holds.
    """
    kept = [_KEEP.format(name=name, text=script.text, end=f"end-{mark}") for name, script in scripts.items()]
    run = [
        _RUN.format(name=name, mark=mark, command=" ".join(_quoted(word) for word in script.command))
        for name, script in scripts.items()
    ]
    return "".join([_BEGIN, *kept, *run])


class MarkReader:
    """Takes the marks out of bytes that come in pieces; what may be the beginning of one waits for the next piece."""

    def __init__(self, mark: str) -> None:
        self._start = b"\x1e" + mark.encode() + b" "
        self._whole = re.compile(re.escape(self._start) + rb"(?:begin ([a-z-]+)|end ([a-z-]+) ([0-9]{1,3}))\n")
        self._held = b""

    def feed(self, data: bytes) -> Iterator[bytes | Mark]:
        """Yield what is decided of all bytes so far: plain bytes and marks, in their order."""
        data = self._held + data
        at = 0
        for found in self._whole.finditer(data):
            if found.start() > at:
                yield data[at : found.start()]
            begun, ended, code = (part and part.decode() for part in found.groups())
            yield Mark(begun or ended or "", None if code is None else int(code))
            at = found.end()
        hold = self._undecided(data, at)
        self._held = data[hold:]
        if hold > at:
            yield data[at:hold]

    def finish(self) -> bytes:
        """Return the rest, which has become no mark."""
        rest, self._held = self._held, b""
        return rest

    def _undecided(self, data: bytes, at: int) -> int:
        """Return where a mark may have begun that the end cuts off."""
        begun = data.rfind(b"\x1e", at)
        if begun < 0:
            return len(data)
        tail = data[begun:]
        cut = self._start.startswith(tail) or (tail.startswith(self._start) and b"\n" not in tail)
        return begun if cut and len(tail) < len(self._start) + _LONGEST else len(data)


_LONGEST = 64  # of what follows the mark's word


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
