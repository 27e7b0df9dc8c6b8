"""CQL2-Text, the filter language of OGC APIs (OGC 21-065r2), read into the tree of a query.

Supported are Basic CQL2, LIKE, BETWEEN and IN, and T_AFTER, T_BEFORE, T_DURING and T_INTERSECTS
of a time with a literal. Spatial and array operators, functions and arithmetic are refused.

Law: CQL2 has three truth values, and a comparison with a missing value is NULL, also after NOT.
The tree has two. So each predicate is read as two trees, when it is true and when it is false,
and NOT exchanges them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn, TypeVar

from prefect_executions.errors import QueryError
from prefect_executions.query.conditions import (
    MAX_DEPTH,
    MAX_TERMS,
    accepted,
    between,
    check_operator,
    check_range,
    condition,
    field_of,
)
from prefect_executions.query.fields import FLAGS, LINKS, Kind, nearest
from prefect_executions.query.literals import Literal, TimeRange, instant
from prefect_executions.query.parser import parse_target
from prefect_executions.query.tree import (
    Condition,
    Everything,
    FieldTarget,
    Has,
    Is,
    Not,
    Operator,
    QueryTree,
    Related,
    Target,
    conjunction,
    disjunction,
)
from prefect_executions.query.values import QueryWord, read, time_range

T = TypeVar("T")

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")+")
    | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?(?![\w.]))
    | (?P<word>[^\W\d][\w.:]*|:[\w.:]*)
    | (?P<operator><>|<=|>=|[=<>])
    | (?P<mark>[(),])
    | (?P<other>\S)
    )""",
    re.VERBOSE,
)
_KEYWORDS = frozenset({"and", "or", "not", "between", "in", "like", "is", "null", "true", "false"})
_INSTANTS = frozenset({"date", "timestamp"})
_OPERATORS = {
    "=": Operator.EQUAL,
    "<>": Operator.DIFFERENT,
    "<": Operator.LESS,
    "<=": Operator.LESS_EQUAL,
    ">": Operator.GREATER,
    ">=": Operator.GREATER_EQUAL,
}
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_WILDCARD = re.compile(r"\\(.)|([%_])", re.DOTALL)
_LITERAL = ("a literal such as 'failed', 10, TRUE or DATE('2026-01-31')",)
_PREDICATE = ("a predicate such as status = 'failed'",)


class _Token(NamedTuple):
    """A symbol of CQL2-Text; `value` is a keyword in lower case, or a text or name without its quotes."""

    kind: str
    value: str
    at: int


class _Predicate(NamedTuple):
    """When a predicate is true, and when it is false; NULL is neither."""

    true: QueryTree
    false: QueryTree

    @classmethod
    def of(cls, tree: QueryTree, target: Target) -> _Predicate:
        return cls(tree, conjunction([Has(target), Not(tree)]))


class _Instant(NamedTuple):
    """DATE, a whole day, or TIMESTAMP, one instant."""

    range: TimeRange


_Scalar = QueryWord | _Instant


def parse_cql2(text: str) -> QueryTree:
    """Return the tree of a filter in CQL2-Text; its property names are those of the query language.

    Raises:
        QueryError: If it is not CQL2-Text, uses a part that is not supported, or is larger than a query may be.
    """
    reader = _Cql2Reader(accepted(text))
    tree = reader.disjunction().true
    reader.end()
    return tree


class _Cql2Reader:
    """Reads one filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split()
        self._place = self._depth = self._predicates = 0

    def _split(self) -> list[_Token]:
        found, text = [], self._text.rstrip()
        for match in _TOKEN.finditer(text):
            kind = match.lastgroup or "other"
            value = match[kind]
            if kind == "word" and value.lower() in _KEYWORDS:
                kind, value = "keyword", value.lower()
            elif kind in {"text", "name"}:
                value = value[1:-1].replace(value[0] * 2, value[0])
            found.append(_Token(kind, value, match.start(match.lastgroup or 0)))
        return [*found, _Token("end", "", len(text))]

    def _fail(self, problem: str, at: int, *, expected: Sequence[str] = ()) -> NoReturn:
        raise QueryError(problem, expected=expected, text=self._text, column=at + 1)

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self, *values: str, kinds: tuple[str, ...] = ("keyword", "operator", "mark")) -> _Token | None:
        token = self._next
        if token.kind not in kinds or (values and token.value not in values):
            return None
        self._place += 1
        return token

    def _need(self, *values: str, kinds: tuple[str, ...] = ("keyword", "operator", "mark")) -> _Token:
        return self._take(*values, kinds=kinds) or self._unexpected(expected=values or kinds)

    def _unexpected(self, *, expected: Sequence[str]) -> NoReturn:
        token = self._next
        problem = "the filter ends too early" if token.kind == "end" else f"unexpected '{self._text[token.at]}'"
        self._fail(problem, token.at, expected=expected)

    def end(self) -> None:
        if self._next.kind != "end":
            self._unexpected(expected=("AND", "OR"))

    def disjunction(self) -> _Predicate:
        predicates = [self._conjunction()]
        while self._take("or"):
            predicates.append(self._conjunction())
        return _Predicate(disjunction(one.true for one in predicates), conjunction(one.false for one in predicates))

    def _conjunction(self) -> _Predicate:
        predicates = [self._negation()]
        while self._take("and"):
            predicates.append(self._negation())
        return _Predicate(conjunction(one.true for one in predicates), disjunction(one.false for one in predicates))

    def _negation(self) -> _Predicate:
        at = self._next.at
        if self._take("not"):
            return _turned(self._deeper(self._negation, at))
        if self._take("("):
            predicate = self._deeper(self.disjunction, at)
            self._need(")")
            return predicate
        return self._predicate()

    def _deeper(self, inner: Callable[[], _Predicate], at: int) -> _Predicate:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"the filter has more than {MAX_DEPTH} levels of parentheses and NOT", at)
        predicate = inner()
        self._depth -= 1
        return predicate

    def _predicate(self) -> _Predicate:
        self._predicates += 1
        if self._predicates > MAX_TERMS:
            self._fail(f"the filter has more than {MAX_TERMS} predicates", self._next.at)
        if (truth := self._take("true", "false")) and self._next.kind != "operator":
            everything = _Predicate(Everything(), Not(Everything()))
            return everything if truth.value == "true" else _turned(everything)
        if truth:
            self._place -= 1
        if self._is_called() and not self._is_instant():
            return self._temporal() if self._next.value.lower() in _TEMPORAL else self._refuse_call()
        if self._next.kind in {"text", "number", "keyword"} or self._is_instant():
            return self._compared_with_literal_first()
        at = self._next.at
        flag = self._flag()
        return flag or self._of_target(self._target(), at)

    def _is_called(self) -> bool:
        following = self._tokens[self._place + 1 :][:1]
        return self._next.kind == "word" and bool(following) and following[0].value == "("

    def _is_instant(self) -> bool:
        return self._is_called() and self._next.value.lower() in _INSTANTS

    def _refuse_call(self) -> NoReturn:
        name = self._next.value.upper()
        kind = {"S_": "spatial operator", "A_": "array operator", "T_": "temporal operator"}.get(name[:2], "function")
        self._fail(f"the {kind} {self._next.value} is not supported", self._next.at, expected=_PREDICATE)

    def _target(self) -> Target:
        token = self._need(kinds=("name", "word"))
        return self._placed(token.at, lambda: parse_target(token.value))

    def _flag(self) -> _Predicate | None:
        """Read ``"is:archived" = TRUE``; a flag is never NULL."""
        token = self._next
        head, flag = token.value[:3].lower(), token.value[3:].lower()
        if token.kind not in {"name", "word"} or head not in {"is:", "is."}:
            return None
        if flag not in FLAGS:
            raise QueryError(f"'{flag}' is not a flag", expected=tuple(FLAGS), suggestion=nearest(flag, FLAGS)).at(
                self._text, token.at + 1
            )
        self._place += 1
        different = self._need("=", "<>").value == "<>"
        truth = self._need("true", "false").value == "true"
        predicate = _Predicate(Is(flag), Not(Is(flag)))
        return predicate if truth is not different else _turned(predicate)

    def _of_target(self, target: Target, at: int) -> _Predicate:
        if self._take("is"):
            negated = self._take("not")
            self._need("null")
            present = _Predicate(Has(target), Not(Has(target)))
            return present if negated else _turned(present)
        if operator := self._take(kinds=("operator",)):
            literal_at = self._next.at
            return self._compare(target, _OPERATORS[operator.value], [self._scalar()], operator.at, literal_at)
        negated = self._take("not")
        keyword = self._take("between", "in", "like")
        if keyword is None:
            self._unexpected(expected=("=", "<>", "<", "<=", ">", ">=", "IS NULL", "LIKE", "BETWEEN", "IN"))
        predicate = {"between": self._between, "in": self._in, "like": self._like}[keyword.value](target, at)
        return _turned(predicate) if negated else predicate

    def _compared_with_literal_first(self) -> _Predicate:
        at = self._next.at
        literal = self._scalar()
        operator = self._need(kinds=("operator",))
        turned = _OPERATORS[_TURNED.get(operator.value, operator.value)]
        return self._compare(self._target(), turned, [literal], operator.at, at)

    def _compare(
        self, target: Target, operator: Operator, scalars: list[_Scalar], operator_at: int, at: int
    ) -> _Predicate:
        if field_of(target).kind is Kind.LINK:
            return self._related(target, operator, scalars, at)
        self._placed(operator_at, lambda: check_operator(target, operator))
        literals = [one for scalar in scalars for one in self._literals(target, operator, scalar, at)]
        tree = self._placed(at, lambda: condition(target, operator, literals))
        return _Predicate.of(tree, target)

    def _related(self, target: Target, operator: Operator, scalars: list[_Scalar], at: int) -> _Predicate:
        ids = tuple(dict.fromkeys(scalar.text for scalar in scalars if isinstance(scalar, QueryWord) and scalar.text))
        if operator is not Operator.EQUAL or not isinstance(target, FieldTarget) or len(ids) < len(set(scalars)):
            self._fail("a relation is compared by = or IN with the text of an id", at)
        return _Predicate.of(Related(LINKS[target.name], ids), target)

    def _between(self, target: Target, at: int) -> _Predicate:
        self._placed(at, lambda: check_range(target))
        ends = []
        for separator in ("and", None):
            end_at = self._next.at
            ends.append(self._literals(target, Operator.LESS_EQUAL, self._scalar(), end_at)[0])
            if separator:
                self._need(separator)
        return _Predicate.of(self._placed(at, lambda: between(target, *ends)), target)

    def _in(self, target: Target, at: int) -> _Predicate:
        self._need("(")
        literal_at = self._next.at
        scalars = [self._scalar()]
        while self._take(","):
            scalars.append(self._scalar())
        self._need(")")
        return self._compare(target, Operator.EQUAL, scalars, at, literal_at)

    def _like(self, target: Target, at: int) -> _Predicate:
        token = self._need(kinds=("text",))
        parts, regex = _pattern(token.value)
        if parts == ("", ""):
            return _Predicate.of(Has(target), target)
        if regex is None:
            return self._compare(target, Operator.EQUAL, [QueryWord(parts, quoted=True)], at, token.at)
        return self._compare(target, Operator.MATCHES, [QueryWord((regex,), quoted=True)], at, token.at)

    def _scalar(self) -> _Scalar:
        token = self._next
        if self._is_instant():
            self._place += 1
            self._need("(")
            found = self._instant(self._need(kinds=("text",)), timestamp=token.value.lower() == "timestamp")
            self._need(")")
            return _Instant(found)
        if text := self._take(kinds=("text",)):
            return QueryWord((text.value,), quoted=True)
        if token.kind in {"name", "word"}:
            self._fail("a property is compared with a literal; text has single quotes", token.at)
        literal = self._take(kinds=("number",)) or self._take("true", "false")
        return QueryWord((literal.value.removesuffix("."),)) if literal else self._unexpected(expected=_LITERAL)

    def _instant(self, token: _Token, *, timestamp: bool) -> TimeRange:
        found = time_range(token.value)
        if found is None or not re.fullmatch(r".{10}T.{8,}" if timestamp else r".{10}", token.value):
            expected = "'2026-01-31T12:30:00Z'" if timestamp else "'2026-01-31'"
            self._fail(f"'{token.value}' is not the text of a time", token.at, expected=(expected,))
        return instant(found.since) if timestamp else found

    def _literals(self, target: Target, operator: Operator, scalar: _Scalar, at: int) -> Sequence[Literal]:
        field = field_of(target)
        if isinstance(scalar, QueryWord):
            return self._placed(at, lambda: read(field, operator, scalar))
        if field.kind is not Kind.TIME:
            self._fail(f"{field.name} is not a time", at)
        return (scalar.range,)

    def _temporal(self) -> _Predicate:
        operator = self._next
        self._place += 1
        self._need("(")
        at = self._next.at
        target = self._target()
        if field_of(target).kind is not Kind.TIME:
            self._fail(f"{field_of(target).name} is not a time", at, expected=("a time first, then a literal",))
        self._need(",")
        at = self._next.at
        first, last = self._interval()
        self._need(")")
        ends = _TEMPORAL[operator.value.lower()](first, last)
        if len(ends) == 1 and ends[0][1] is None:
            self._fail("the interval is open at this end", at)
        trees = [Condition(target, compared, (end,)) for compared, end in ends if end]
        return _Predicate.of(conjunction(trees) if trees else Has(target), target)

    def _interval(self) -> tuple[TimeRange | None, TimeRange | None]:
        if self._next.kind != "word" or self._next.value.lower() != "interval":
            scalar = self._scalar()
            if not isinstance(scalar, _Instant):
                self._unexpected(expected=("DATE", "TIMESTAMP", "INTERVAL"))
            return scalar.range, scalar.range
        self._place += 1
        self._need("(")
        ends = []
        for separator in (",", ")"):
            token = self._need(kinds=("text",))
            ends.append(None if token.value == ".." else self._instant(token, timestamp="T" in token.value))
            self._need(separator)
        return ends[0], ends[1]

    def _placed(self, at: int, make: Callable[[], T]) -> T:
        try:
            return make()
        except QueryError as error:
            placed = QueryError(error.problem, expected=error.expected, suggestion=error.suggestion)
            raise placed.at(self._text, at + 1) from error.__cause__


_Ends = Callable[[TimeRange | None, TimeRange | None], Sequence[tuple[Operator, TimeRange | None]]]
_TEMPORAL: dict[str, _Ends] = {
    "t_after": lambda _, last: [(Operator.GREATER, last)],
    "t_before": lambda first, _: [(Operator.LESS, first)],
    "t_during": lambda first, last: [(Operator.GREATER, first), (Operator.LESS, last)],
    "t_intersects": lambda first, last: [(Operator.GREATER_EQUAL, first), (Operator.LESS_EQUAL, last)],
}


def _turned(predicate: _Predicate) -> _Predicate:
    return _Predicate(predicate.false, predicate.true)


def _pattern(like: str) -> tuple[tuple[str, ...], str | None]:
    """Return a LIKE pattern as the parts between its wildcards, and as a regular expression if it has ``_``."""
    parts, regex, place, has_underscore = [""], "", 0, False
    for found in _WILDCARD.finditer(like):
        text = like[place : found.start()] + (found[1] or "")
        parts[-1] += text
        regex += re.escape(text) + {"%": ".*", "_": "."}.get(found[2] or "", "")
        has_underscore = has_underscore or found[2] == "_"
        if found[2] == "%":
            parts.append("")
        place = found.end()
    parts[-1] += like[place:]
    inner = [part for part in parts[1:-1] if part]
    whole = f"(?s)^{regex}{re.escape(like[place:])}$"
    return (parts[0], *inner, *parts[1:][-1:]), whole if has_underscore else None
