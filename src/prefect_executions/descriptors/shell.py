"""Where in a shell script a placeholder stands: between which quotes, in which commands.

The grammar is POSIX's (XCU 2.2 to 2.7), with bash's ``$'…'``, ``<<<`` and
``((…))``. Nothing rests on it but how a reference is quoted: a value is never
part of the text that this reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice

PLACEHOLDER = re.compile(r"\{\{[ \t]*([^{}\n]{1,200}?)[ \t]*\}\}")

_DELIMITER = re.compile(r"<<(?P<tabs>-?)[ \t]*(?P<word>(?:\\.|'[^'\n]*'|\"[^\"\n]*\"|[^\s;&|<>()'\"\\])+)")
MOST_PLACEHOLDERS = 1000

_MOST_NESTED = 64
_MOST_READ = 4000
_SEPARATORS = ";&|\n"


class Where(Enum):
    """What surrounds a placeholder."""

    BARE = auto()
    DOUBLE = auto()
    SINGLE = auto()
    ANSI = auto()
    HERE = auto()
    QUOTED_HERE = auto()
    ARITHMETIC = auto()
    EXPANSION = auto()
    SUBSTITUTION = auto()
    BACKTICK = auto()
    GROUP = auto()


_LIKE_BARE = frozenset({Where.BARE, Where.SUBSTITUTION, Where.BACKTICK, Where.GROUP})


@dataclass(frozen=True)
class Placeholder:
    """One placeholder: its place in the text, and what surrounds it.

    Attributes:
        where: The quotes around it; `Where.BARE` for none, whatever the nesting.
        commands: Of each command around it, the inmost last, the words before the placeholder's own word.
        alone: Whether it is a word of its own.
        begun: What stands before it in its own word.
    """

    start: int
    end: int
    name: str
    where: Where
    commands: tuple[tuple[str, ...], ...]
    alone: bool
    in_backtick_in_quotes: bool
    begun: str


class Unreadable(ValueError):  # noqa: N818 - it is told as a fault, with its place
    """The script cannot be followed; the message says why."""


@dataclass
class _Frame:
    kind: Where
    command: int = 0
    """Where the current command begins."""
    word: int | None = None
    """Where the current word begins."""
    cases: int = 0
    depth: int = 0
    waiting: list[tuple[str, bool, bool]] = field(default_factory=list)
    """Here-documents that begin with the next line: delimiter, whether quoted, whether tabs are stripped."""


def placeholders(text: str) -> tuple[Placeholder, ...]:
    """Return all placeholders of a script but those in comments.

    Raises:
        Unreadable: If a quote or parenthesis is not closed, the nesting is too deep, or there are too many.
    """
    found = tuple(islice(_Scan(text, 0, len(text), Where.BARE).all(), MOST_PLACEHOLDERS + 1))
    if len(found) > MOST_PLACEHOLDERS:
        raise Unreadable(f"more than {MOST_PLACEHOLDERS} placeholders; use the environment variables")
    return found


class _Scan:
    """One pass over a script, or over the body of a here-document."""

    def __init__(self, text: str, start: int, end: int, base: Where, outer: tuple[_Frame, ...] = ()) -> None:
        self.text = text
        self.at = start
        self.end = end
        self.outer = outer
        self.frames = [_Frame(base, command=start)]

    def all(self) -> Iterator[Placeholder]:
        while self.at < self.end:
            found = PLACEHOLDER.match(self.text, self.at, self.end)
            if found:
                yield self._placed(found)
                self.at = found.end()
                continue
            yield from self._step()
        if len(self.frames) > 1 or self.frames[0].waiting:
            raise Unreadable("a quote, parenthesis or here-document that is opened is not closed")

    def _placed(self, found: re.Match[str]) -> Placeholder:
        top = self.frames[-1]
        if top.kind in _LIKE_BARE and top.word is None:
            top.word = found.start()
        around = [frame for frame in (*self.outer, *self.frames) if frame.kind in _LIKE_BARE]
        kinds = [frame.kind for frame in self.frames]
        quoted_tick = any(
            kind is Where.BACKTICK and Where.DOUBLE in kinds[:number] for number, kind in enumerate(kinds)
        )
        return Placeholder(
            start=found.start(),
            end=found.end(),
            name=found[1],
            where=Where.BARE if top.kind in _LIKE_BARE else top.kind,
            commands=tuple(self._words(one.command, one.word or one.command) for one in around),
            alone=top.kind in _LIKE_BARE and top.word == found.start() and self._ends_a_word(found.end()),
            in_backtick_in_quotes=quoted_tick,
            begun=self._begun(around[-1], found.start()) if around else "",
        )

    def _begun(self, frame: _Frame, at: int) -> str:
        word = frame.command if frame.word is None else frame.word
        return self.text[max(word, at - _MOST_READ) : at]

    def _words(self, start: int, end: int) -> tuple[str, ...]:
        if end - start > 2 * _MOST_READ:  # a line that was made to take long
            return (*self.text[start : start + _MOST_READ].split(), *self.text[end - _MOST_READ : end].split())
        return tuple(self.text[start:end].split())

    def _ends_a_word(self, at: int) -> bool:
        return at >= self.end or self.text[at] in " \t\n;&|<>()`"

    def _step(self) -> Iterator[Placeholder]:
        kind = self.frames[-1].kind
        if kind in _LIKE_BARE:
            yield from self._bare()
        elif kind in {Where.SINGLE, Where.ANSI}:
            self._single(kind)
        elif kind is Where.ARITHMETIC:
            self._arithmetic()
        elif kind is Where.QUOTED_HERE:
            self.at += 1
        else:
            self._expanding(kind)

    def _single(self, kind: Where) -> None:
        character = self.text[self.at]
        if character == "'":
            self.frames.pop()
        self.at += 2 if character == "\\" and kind is Where.ANSI else 1

    def _arithmetic(self) -> None:
        top = self.frames[-1]
        if self.text.startswith("))", self.at) and not top.depth:
            self.frames.pop()
            self.at += 2
            return
        top.depth += {"(": 1, ")": -1}.get(self.text[self.at], 0)
        self.at += 1

    def _expanding(self, kind: Where) -> None:
        """Read on in double quotes, in a here-document, or in ``${…}``."""
        character = self.text[self.at]
        if self._opened():
            return
        if character == "\\":
            self.at += 2
            return
        if (character == '"' and kind is Where.DOUBLE) or (character == "}" and kind is Where.EXPANSION):
            self.frames.pop()
        elif character == '"' and kind is Where.EXPANSION:
            self._push(Where.DOUBLE)
        elif character == "'" and kind is Where.EXPANSION and not any(f.kind is Where.DOUBLE for f in self.frames):
            self._push(Where.SINGLE)
        self.at += 1

    def _opened(self) -> bool:
        """Go into what ``$`` or a backtick opens here, and say whether it does."""
        for sign, kind in (("$((", Where.ARITHMETIC), ("$(", Where.SUBSTITUTION), ("${", Where.EXPANSION)):
            if self.text.startswith(sign, self.at) and not self.text.startswith("${{", self.at):
                self.at += len(sign)
                self._push(kind)
                return True
        if self.text[self.at] != "`":
            return False
        self.at += 1
        if any(frame.kind is Where.BACKTICK for frame in self.frames):
            while self.frames.pop().kind is not Where.BACKTICK:
                pass
        else:
            self._push(Where.BACKTICK)
        return True

    def _push(self, kind: Where) -> None:
        if len(self.frames) + len(self.outer) >= _MOST_NESTED:
            raise Unreadable(f"it nests deeper than {_MOST_NESTED} levels")
        self.frames.append(_Frame(kind, command=self.at))

    def _bare(self) -> Iterator[Placeholder]:
        top = self.frames[-1]
        character = self.text[self.at]
        begins = top.word is None
        if begins and character not in " \t\n;&|":
            top.word = self.at
        if character == "#" and begins:
            self._comment()
        elif character in " \t" or (character in _SEPARATORS and not self._is_redirection(character)):
            yield from self._between(character)
        elif character == "\\":
            self.at += 2
        elif character in "'\"" or self.text.startswith("$'", self.at):
            self._quote(character)
        elif character in "()":
            self._parenthesis(character, begins=begins)
        elif self.text.startswith("<<", self.at):
            self._here()
        elif not self._opened():
            if begins:
                self._case()
            self.at += 1

    def _comment(self) -> None:
        stop = self.text.find("\n", self.at, self.end)
        self.at = self.end if stop < 0 else stop
        self.frames[-1].word = None

    def _quote(self, character: str) -> None:
        self.at += 2 if character == "$" else 1
        self._push({"'": Where.SINGLE, '"': Where.DOUBLE}.get(character, Where.ANSI))

    def _is_redirection(self, character: str) -> bool:
        return character == "&" and self.text[max(0, self.at - 1)] in "<>"

    def _between(self, character: str) -> Iterator[Placeholder]:
        top = self.frames[-1]
        top.word = None
        self.at += 1
        if character in _SEPARATORS:
            bodies = top.waiting if character == "\n" else []
            head = _Frame(Where.BARE, command=self.text.rfind("\n", 0, self.at - 1) + 1, word=self.at)
            for delimiter, quoted, tabs in bodies:
                yield from self._body(delimiter, head, quoted=quoted, tabs=tabs)
            bodies.clear()
            top.command = self.at

    def _case(self) -> None:
        top = self.frames[-1]
        if re.compile(r"case\s").match(self.text, self.at, self.end):
            top.cases += 1
        elif re.compile(r"esac(?![\w-])").match(self.text, self.at, self.end):
            top.cases -= 1

    def _parenthesis(self, character: str, *, begins: bool) -> None:
        top = self.frames[-1]
        if self.text.startswith("((", self.at) and begins:
            self.at += 2
            self._push(Where.ARITHMETIC)
            return
        self.at += 1
        if character == "(":
            top.word = None
            self._push(Where.GROUP)
        elif top.kind in {Where.SUBSTITUTION, Where.GROUP} and top.cases <= 0:
            self.frames.pop()
        else:
            top.word = None
            top.command = self.at

    def _here(self) -> None:
        found = _DELIMITER.match(self.text, self.at, self.end)
        if self.text.startswith("<<<", self.at) or not found:
            self.at += 3 if self.text.startswith("<<<", self.at) else 2
            self.frames[-1].word = None
            return
        word = found["word"]
        quoted = any(sign in word for sign in "'\"\\")
        self.frames[-1].waiting.append((re.sub(r"['\"\\]", "", word), quoted, bool(found["tabs"])))
        self.at = found.end()

    def _body(self, delimiter: str, head: _Frame, *, quoted: bool, tabs: bool) -> Iterator[Placeholder]:
        """Read a here-document; afterwards we stand behind its delimiter."""
        start = line = self.at
        while line < self.end:
            stop = self.text.find("\n", line, self.end)
            stop = self.end if stop < 0 else stop
            told = self.text[line:stop]
            if (told.lstrip("\t") if tabs else told) == delimiter:
                break
            line = stop + 1
        else:
            raise Unreadable(f"the here-document '{delimiter[:40]}' is not closed")
        kind = Where.QUOTED_HERE if quoted else Where.HERE
        outer = (*self.outer, *self.frames[:-1], head)
        if len(outer) >= _MOST_NESTED:
            raise Unreadable(f"it nests deeper than {_MOST_NESTED} levels")
        yield from _Scan(self.text, start, line, kind, outer).all()
        self.at = min(stop + 1, self.end)
