"""How long a store is tried: exponential pauses with jitter, within one total time limit."""

from __future__ import annotations

import random
import time
from datetime import timedelta

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class Patience:
    """The time left for one call, which all its requests share."""

    def __init__(self, limit: timedelta) -> None:
        self.limit = limit.total_seconds()
        self._end = time.monotonic() + self.limit

    @property
    def left(self) -> float:
        """Seconds until the limit; never negative."""
        return max(0.0, self._end - time.monotonic())

    def pause(self, attempt: int) -> float | None:
        """Return how many seconds to wait after failed *attempt* (from 1), or None when no time is left for another."""
        longest = min(FIRST_PAUSE * 2.0 ** min(attempt - 1, 16), LONGEST_PAUSE)
        # Half of it is by chance, so that many runs that failed together do not come back together.
        pause = random.uniform(longest / 2, longest)  # noqa: S311 - not for secrets
        return pause if pause < self.left else None
