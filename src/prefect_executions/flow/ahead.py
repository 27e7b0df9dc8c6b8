"""What is found out about a run that was just called, while Prefect still accepts it: the code that it runs.

In a large repository that takes longer than all the rest of the recording, and
Prefect's answers are waited for meanwhile.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from prefect_executions.capture.code import identify
from prefect_executions.flow.declared import Declared
from prefect_executions.settings import Settings

_called: ContextVar[tuple[Declared, float] | None] = ContextVar("called", default=None)


@contextmanager
def looking_ahead(declared: Declared) -> Iterator[None]:
    """Look at the Method's code in a thread, for the run that is called inside, in this thread.

    What cannot be found out is met again by the run itself, which tells it.
    """

    def look() -> None:
        with suppress(Exception):
            identify(declared.source, settings=Settings.read(), environment=os.environ, since=since)

    since = time.monotonic()
    threading.Thread(target=look, name="look", daemon=True).start()
    token = _called.set((declared, since))
    try:
        yield
    finally:
        _called.reset(token)


def called_at(declared: Declared) -> float | None:
    """Return since when what was seen of the Method's code is true of the run that begins; None if only now is.

    A second attempt in the same call begins later, so it is told once.
    """
    called = _called.get()
    if called is None or called[0] is not declared:
        return None
    _called.set(None)
    return called[1]
