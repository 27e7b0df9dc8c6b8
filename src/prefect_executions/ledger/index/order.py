"""The order of a search's results: the first rows by any keys, without sorting the others.

Law: every key compares as arrays of ranks in which a larger rank comes first. Rows without
a value come last in both directions, and ties are newest first, so every order is total.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from prefect_executions.ledger.index.columns import Array, Mask

_BLOCK = 1 << 16
_SAMPLED = 64
"""One in so many values is sampled for a bound that most rows miss; a partition of all takes ten times as long."""


class Ranked(NamedTuple):
    """The ranks of some rows by one key."""

    ranks: tuple[Array, ...]
    """Compared one after the other; the larger one comes first."""
    present: Mask | None
    """Whether each row has a value; None if all have."""

    def take(self, places: Array) -> Ranked:
        present = None if self.present is None else self.present.take(places)
        return Ranked(tuple(ranks.take(places) for ranks in self.ranks), present)


Key = Callable[[Array], Ranked]
"""Returns the ranks of rows."""


class Bound(NamedTuple):
    """The value of one key, as it compares with the ranks of a segment; `ranks` is None for a missing value."""

    ranks: tuple[float, ...] | None


def newest(mask: Mask, most: int) -> Array:
    """Return the last *most* rows of *mask*, the last one first."""
    found: list[Array] = []
    end, left = len(mask), most
    while end > 0 and left > 0:
        begin = max(0, end - max(_BLOCK, left))
        rows = np.flatnonzero(mask[begin:end])[-left:]
        found.append(rows[::-1] + begin)
        left -= len(rows)
        end = begin
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def first_rows(rows: Array, keys: Sequence[Key], most: int) -> Array:
    """Return the first *most* of *rows*, which are ascending, in the order of *keys*, then newest first."""
    if not keys:
        return rows[::-1][:most]
    ranked = keys[0](rows)
    places = _candidates(ranked, most)
    if places is not None:
        rows, ranked = rows.take(places), Ranked(ranked.take(places).ranks, None)
    if ranked.present is None:
        return _first_ranked(rows, ranked.ranks, keys[1:], most)
    have = np.flatnonzero(ranked.present)
    chosen = _first_ranked(rows.take(have), ranked.take(have).ranks, keys[1:], most)
    if len(chosen) == most:
        return chosen
    lack = rows.take(np.flatnonzero(~ranked.present))
    return np.concatenate((chosen, first_rows(lack, keys[1:], most - len(chosen))))


def _first_ranked(rows: Array, ranks: tuple[Array, ...], keys: Sequence[Key], most: int) -> Array:
    if not ranks:
        return first_rows(rows, keys, most)
    if len(rows) <= most:
        return _sorted(rows, ranks, keys)
    places = _candidates(Ranked(ranks, None), most)
    if places is not None:
        rows, ranks = rows.take(places), tuple(each.take(places) for each in ranks)
    values = ranks[0]
    last = np.partition(values, len(values) - most)[len(values) - most]
    better, equal = np.flatnonzero(values > last), np.flatnonzero(values == last)
    chosen = _sorted(rows.take(better), tuple(each.take(better) for each in ranks), keys)
    further = tuple(each.take(equal) for each in ranks[1:])
    return np.concatenate((chosen, _first_ranked(rows.take(equal), further, keys, most - len(chosen))))


def _candidates(ranked: Ranked, most: int) -> Array | None:
    """Return ascending places of rows with a value that include the first *most* rows, or None if all may be needed."""
    if not ranked.ranks or len(ranked.ranks[0]) < max(_BLOCK, most * _SAMPLED):
        return None
    values, present = ranked.ranks[0], ranked.present
    sample = values[::_SAMPLED] if present is None else values[::_SAMPLED][present[::_SAMPLED]]
    if len(sample) < most:
        return None
    bound = np.partition(sample, len(sample) - most)[len(sample) - most]
    chosen = values >= bound if present is None else (values >= bound) & present
    places = np.flatnonzero(chosen)
    return places if len(places) < len(values) // 2 else None


def _sorted(rows: Array, ranks: tuple[Array, ...], keys: Sequence[Key]) -> Array:
    columns = list(ranks)
    for key in keys:
        ranked = key(rows)
        if ranked.present is not None:
            columns.append(ranked.present)
            columns += [np.where(ranked.present, each, each.dtype.type(0)) for each in ranked.ranks]
        else:
            columns += ranked.ranks
    return rows.take(np.lexsort((rows, *reversed(columns)))[::-1])


def after(rows: Array, keys: Sequence[Key], bounds: Sequence[Bound], position: int) -> Array:
    """Return those of *rows* that come after a row with the values *bounds*, which is, or would be, at *position*."""
    later = np.zeros(len(rows), np.bool_)
    equal = np.ones(len(rows), np.bool_)
    for key, bound in zip(keys, bounds, strict=True):
        ranked = key(rows)
        present = np.ones(len(rows), np.bool_) if ranked.present is None else ranked.present
        if bound.ranks is None:
            equal &= ~present
            continue
        later |= equal & ~present
        equal &= present
        for ranks, value in zip(ranked.ranks, bound.ranks, strict=True):
            later |= equal & (ranks < value)
            equal &= ranks == value
    later |= equal & (rows < position)
    return rows.take(np.flatnonzero(later))
