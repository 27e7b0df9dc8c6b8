r"""The parser of the query language: text to tree, by recursive descent.

Grammar, with blanks allowed between any two symbols::

    query  := [ or ] | "*"
    or     := and ( "OR" and )*
    and    := not ( [ "AND" ] not )*
    not    := "NOT" not | "(" or ")" | term
    term   := target ":" values
            | target [ ":" ] ( "=" | "!=" | "<" | "<=" | ">" | ">=" | "~" ) values
            | source ":" name
            | word
    target := field | name | source ( ":" | "." ) name
    source := "param" | "metric" | "in" | "property"
    values := word ( "," word )* | word "TO" word
    word   := ( character | "*" | '"' ( character | '\"' | '\\' )* '"' )+

Keywords are in capitals. ``*`` outside quotes is a wildcard.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeVar

from prefect_executions.errors import QueryError
from prefect_executions.query.conditions import (
    EQUALITIES,
    MAX_DEPTH,
    MAX_TERMS,
    accepted,
    between,
    check_operator,
    check_range,
    condition,
    field_of,
    value_target,
)
from prefect_executions.query.fields import BY_NAME, FLAGS, LINKS, SOURCES, Kind, nearest
from prefect_executions.query.literals import Literal, Text
from prefect_executions.query.tree import (
    Everything,
    FieldTarget,
    Has,
    Is,
    Not,
    Operator,
    QueryTree,
    Related,
    Target,
    ValueSource,
    Words,
    conjunction,
    disjunction,
)
from prefect_executions.query.values import KEYWORDS, QueryWord, read

T = TypeVar("T")

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_OPERATOR = re.compile(r"\s*(?::(?:\s*(!=|<=|>=|=|<|>|~))?|(!=|<=|>=|=|<|>|~))")
_NAME = re.compile(r'(?:[^\s()",:<>=~!]|!(?!=))+')
_VALUE = re.compile(r'(?:[^\s()",<>=~!]|!(?!=))+')
_REGEX = re.compile(r'[^\s()"]+')
_KEYWORD = re.compile(r'(?:AND|OR|NOT|TO)(?=[\s()"]|$)')
_LETTER = re.compile(r"[^\W\d]")
_DOTTED = {**SOURCES, "input": ValueSource.INPUT}
_UNCOMPARED = frozenset({Kind.PRESENCE, Kind.FLAG, Kind.LINK})
_TERM = ("a field such as status:failed", "a name such as epochs>10", "a word")


def parse(text: str) -> QueryTree:
    """Return the tree of a query; the empty text matches everything.

    Raises:
        QueryError: If it is not a query, or has more than 2,000 characters, 64 terms or 32 levels.
    """
    reader = _QueryReader(accepted(text))
    tree = Everything() if reader.at_end() else reader.disjunction()
    if not reader.at_end():
        reader.fail("this parenthesis closes nothing")
    return tree


def parse_target(text: str) -> Target:
    """Return what a sort key or a column names: ``started``, ``metric:accuracy.max``, ``epochs``.

    Raises:
        QueryError: If it names no field and no value.
    """
    reader = _QueryReader(accepted(text))
    target = reader.target(reader.pieces(_NAME))
    if not reader.at_end():
        reader.fail("the name should end here")
    kind = field_of(target).kind
    if kind in {Kind.PRESENCE, Kind.FLAG} or (kind is Kind.VALUE and isinstance(target, FieldTarget)):
        reader.fail(f"'{target.name}' has no value", at=0, expected=("a field", "a name such as metric:accuracy"))
    return target


class _Piece(NamedTuple):
    """A part of a word: in quotes or not, and its place in the query."""

    text: str
    quoted: bool
    at: int


class _QueryReader:
    """Reads one query from left to right."""

    def __init__(self, text: str) -> None:
        self._text, self._place = text, 0
        self._terms = self._depth = 0

    def at_end(self) -> bool:
        self._skip_blanks()
        return self._place == len(self._text)

    def fail(
        self, problem: str, *, at: int | None = None, expected: tuple[str, ...] = (), suggestion: str | None = None
    ) -> NoReturn:
        place = self._place if at is None else at
        raise QueryError(problem, expected=expected, suggestion=suggestion, text=self._text, column=place + 1)

    def disjunction(self) -> QueryTree:
        terms = [self._conjunction()]
        while self._take_keyword("OR"):
            terms.append(self._conjunction())
        return disjunction(terms)

    def _conjunction(self) -> QueryTree:
        terms = [self._negation()]
        while not (self.at_end() or self._sees(")") or self._keyword() == "OR"):
            self._take_keyword("AND")
            terms.append(self._negation())
        return conjunction(terms)

    def _negation(self) -> QueryTree:
        self._skip_blanks()
        start = self._place
        if self._take_keyword("NOT"):
            return Not(self._deeper(self._negation, start))
        if not self._sees("("):
            return self._term()
        self._place += 1
        tree = self._deeper(self.disjunction, start)
        if not self._sees(")"):
            self.fail("this parenthesis is not closed", at=start, expected=(")",))
        self._place += 1
        return tree

    def _deeper(self, inner: Callable[[], QueryTree], start: int) -> QueryTree:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self.fail(f"the query has more than {MAX_DEPTH} levels of parentheses and NOT", at=start)
        tree = inner()
        self._depth -= 1
        return tree

    def _term(self) -> QueryTree:
        self._terms += 1
        if self._terms > MAX_TERMS:
            self.fail(f"the query has more than {MAX_TERMS} terms")
        pieces = self.pieces(_NAME)
        if not _OPERATOR.match(self._text, self._place):
            return self._words(pieces)
        target = self.target(pieces)
        at, operator = self._place, self._take_operator()
        if operator is None:  # a source and a name, such as param:epochs
            return Has(target)
        kind = field_of(target).kind
        if kind in _UNCOMPARED and operator not in {Operator.CONTAINS, Operator.EQUAL}:
            self.fail(f"'{operator.value}' does not compare {target.name}", at=at, expected=(field_of(target).example,))
        if kind is Kind.PRESENCE:
            return disjunction(self._list(self._presence))
        if kind is Kind.FLAG:
            return disjunction(self._list(self._flag))
        if kind is Kind.LINK:
            return Related(LINKS[target.name], tuple(dict.fromkeys(self._list(self._id))))
        self._placed(at, lambda: check_operator(target, operator))
        return self._condition(target, operator)

    def _words(self, pieces: list[_Piece]) -> QueryTree:
        if self._sees(","):
            self.fail("a comma separates the values of a field; put a text with a comma in quotes")
        word = self._word(pieces)
        if not word.text:
            self.fail("the text is empty", at=pieces[0].at)
        return Everything() if word.parts == ("", "") else Words(Text(word.parts))

    def target(self, pieces: list[_Piece]) -> Target:
        """Return what *pieces* name; reads on if they are a source without its name."""
        first, *others = pieces
        if first.quoted:
            return self._value_target(ValueSource.ANY, pieces)
        field = BY_NAME.get(first.text.lower()) if not others else None
        if field and field.kind is Kind.VALUE and self._take(":"):
            return self._value_target(SOURCES[field.name], self.pieces(_NAME))
        if field and field.name == "input" and (name := self._name_of_input()):
            return self._value_target(ValueSource.INPUT, name)
        if field:
            return FieldTarget(field.name)
        head, dot, rest = first.text.partition(".")
        source = _DOTTED.get(head.lower())
        if source and dot and (rest or others):
            rest_of_first = [first._replace(text=rest)] if rest else []
            return self._value_target(source, [*rest_of_first, *others])
        if not _LETTER.match(first.text):
            advice = "to exclude, write NOT" if first.text[0] == "-" else "put another in quotes"
            self.fail(f"a name begins with a letter; {advice}", at=first.at, expected=_TERM)
        return self._value_target(ValueSource.ANY, pieces)

    def _value_target(self, source: ValueSource, pieces: list[_Piece]) -> Target:
        for piece in pieces:
            if not piece.quoted and "*" in piece.text:
                self.fail("a name has no wildcard", at=piece.at)
        name = "".join(piece.text for piece in pieces)
        if not name:
            self.fail("the name is empty", at=pieces[0].at)
        return value_target(source, name, typed=not pieces[-1].quoted)

    def _name_of_input(self) -> list[_Piece] | None:
        """Read the name in ``input:seed=3``; not the file in ``input:a.csv``."""
        start = self._place
        if self._take(":") and not self._sees(*"<>=~!"):
            pieces = self._pieces(_NAME)
            found = _OPERATOR.match(self._text, self._place)
            if pieces and found and (found[1] or found[2]):
                return pieces
        self._place = start
        return None

    def _condition(self, target: Target, operator: Operator) -> QueryTree:
        words = self._list(lambda: self._value(operator), commas=operator is not Operator.MATCHES)
        first, at = words[0]
        if len(words) == 1 and operator in {Operator.CONTAINS, Operator.EQUAL} and self._take_keyword("TO"):
            self._placed(at, lambda: check_range(target))
            second, end = self._value(operator)
            low, high = self._end(target, first, at), self._end(target, second, end)
            return self._placed(at, lambda: between(target, low, high))
        if len(words) == 1 and operator in EQUALITIES and first.parts == ("", ""):
            return Not(Has(target)) if operator is Operator.DIFFERENT else Has(target)
        literals = [literal for word, place in words for literal in self._literals(target, operator, word, place)]
        return self._placed(at, lambda: condition(target, operator, literals))

    def _end(self, target: Target, word: QueryWord, at: int) -> Literal | None:
        return None if word.parts == ("", "") else self._literals(target, Operator.LESS_EQUAL, word, at)[0]

    def _literals(self, target: Target, operator: Operator, word: QueryWord, at: int) -> tuple[Literal, ...]:
        return self._placed(at, lambda: read(field_of(target), operator, word))

    def _value(self, operator: Operator) -> tuple[QueryWord, int]:
        self._skip_blanks()
        at = self._place
        pieces = self.pieces(_REGEX if operator is Operator.MATCHES else _VALUE, expected=("a value",))
        if self._sees_here(*"<>=~!"):
            self.fail("a value ends here; put a value with this character in quotes")
        return self._word(pieces, wildcards=operator is not Operator.MATCHES), at

    def _presence(self) -> QueryTree:
        at = self._place
        target = self.target(self.pieces(_NAME, expected=("a field or a name",)))
        if field_of(target).kind in {Kind.PRESENCE, Kind.FLAG} or target == FieldTarget(ValueSource.ANY):
            self.fail(f"'{target.name}' has no value", at=at, expected=("a field or a name",))
        return Has(target)

    def _flag(self) -> QueryTree:
        at = self._place
        word = self._word(self.pieces(_NAME, expected=tuple(FLAGS)))
        flag = word.text.lower()
        if flag not in FLAGS:
            self.fail(f"'{flag}' is not a flag", at=at, expected=tuple(FLAGS), suggestion=nearest(flag, FLAGS))
        return Is(flag)

    def _id(self) -> str:
        at = self._place
        word = self._word(self.pieces(_VALUE, expected=("the id of an execution",)))
        if not word.plain:
            self.fail("an id has no wildcard; its beginning is enough", at=at)
        return word.plain

    def _list(self, item: Callable[[], T], *, commas: bool = True) -> list[T]:
        self._skip_blanks()
        found = [item()]
        while commas and self._take(","):
            self._skip_blanks()
            found.append(item())
        return found

    def pieces(self, pattern: re.Pattern[str], *, expected: tuple[str, ...] = _TERM) -> list[_Piece]:
        """Read a word whose letters outside quotes match *pattern*."""
        self._skip_blanks()
        found = self._pieces(pattern)
        if self._sees_here("("):
            self.fail("a word ends before a parenthesis; put it in quotes, or a blank before it")
        if len(found) == 1 and not found[0].quoted and found[0].text in KEYWORDS:
            self.fail(f"{found[0].text} is a keyword; put it in quotes", at=found[0].at, expected=expected)
        if not found:
            seen = self._text[self._place : self._place + 1]
            self.fail(f"unexpected '{seen}'" if seen else "the query ends too early", expected=expected)
        return found

    def _pieces(self, pattern: re.Pattern[str]) -> list[_Piece]:
        found: list[_Piece] = []
        while self._place < len(self._text):
            at, is_quoted = self._place, self._text[self._place] == '"'
            match = (_QUOTED if is_quoted else pattern).match(self._text, at)
            if match is None and is_quoted:
                self.fail("this quote is not closed", at=at, expected=('"',))
            if match is None:
                break
            self._place = match.end()
            found.append(_Piece(_ESCAPED.sub(r"\1", match[1]) if is_quoted else match[0], is_quoted, at))
        return found

    def _word(self, pieces: list[_Piece], *, wildcards: bool = True) -> QueryWord:
        parts = [""]
        for piece in pieces:
            first, *others = [piece.text] if piece.quoted or not wildcards else piece.text.split("*")
            parts[-1] += first
            parts += others
        inner = [part for part in parts[1:-1] if part]  # ** is *
        return QueryWord((parts[0], *inner, *parts[1:][-1:]), quoted=any(piece.quoted for piece in pieces))

    def _placed(self, at: int, make: Callable[[], T]) -> T:
        try:
            return make()
        except QueryError as error:
            raise error.at(self._text, at + 1) from error.__cause__

    def _take_operator(self) -> Operator | None:
        found = _OPERATOR.match(self._text, self._place)
        if found is None:
            return None
        self._place = found.end()
        return Operator(found[1] or found[2] or ":")

    def _keyword(self) -> str | None:
        self._skip_blanks()
        found = _KEYWORD.match(self._text, self._place)
        return found and found[0]

    def _take_keyword(self, keyword: str) -> bool:
        if self._keyword() != keyword:
            return False
        self._place += len(keyword)
        return True

    def _take(self, letter: str) -> bool:
        if not self._sees(letter):
            return False
        self._place += 1
        return True

    def _sees(self, *letters: str) -> bool:
        self._skip_blanks()
        return self._sees_here(*letters)

    def _sees_here(self, *letters: str) -> bool:
        return self._text[self._place : self._place + 1] in letters

    def _skip_blanks(self) -> None:
        while self._text[self._place : self._place + 1].isspace():
            self._place += 1
