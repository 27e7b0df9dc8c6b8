"""Several coroutines at once, but never more than a number of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


async def all_of(works: Iterable[Awaitable[_T]], at_once: int) -> list[_T]:
    """Await *works*, at most *at_once* at a time, and return their results in the same order.

    *works* is drawn from only as fast as it is worked on. At the first failure the
    others are cancelled, and nothing of them runs any more when it is raised.
    """
    results: dict[int, _T] = {}
    numbered = enumerate(works)

    async def work_on() -> None:
        for number, work in numbered:
            results[number] = await work

    workers = [asyncio.ensure_future(work_on()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[number] for number in sorted(results)]
