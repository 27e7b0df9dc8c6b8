"""Exceptions that Prefect could not format or send."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from prefect.states import format_exception

from homes import Bundles
from marks import long_if
from prefect_executions import method
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.flow.outcome import LONGEST_MESSAGE, mask_error, outcome
from prefect_executions.lifecycle.status import Reason, Status


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class TextRaisesError(Exception):
    def __str__(self) -> str:
        return "no route to " + self.args[0]


class ReprRaisesError(TimeoutError):
    def __repr__(self) -> str:
        raise TypeError("no repr")


class TextIsNoTextError(Exception):
    def __str__(self) -> Any:
        return 17  # noqa: PLE0307 - the fault under test


class SlotsError(Exception):
    __slots__ = ("place",)

    def __str__(self) -> str:
        raise KeyError(self.place)


class RefusesError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        if name != "__traceback__":  # which `contextlib` sets
            raise AttributeError(name)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("final")

    def __str__(self) -> str:
        return str(self.args[0])


class CannotPickleError(Exception):
    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle")


class NullError(Exception):
    def __str__(self) -> str:
        return "a\0b\udc80"


UNPRINTABLE: dict[str, Callable[[], BaseException]] = {
    "text raises": lambda: TextRaisesError(Ellipsis),
    "repr raises": lambda: ReprRaisesError("late"),
    "text is no text": TextIsNoTextError,
    "slots": SlotsError,
    "refuses changes": lambda: RefusesError(Unprintable()),
    "built-in": lambda: ValueError(Unprintable()),
    "key error": lambda: KeyError(Unprintable()),
    "os error": lambda: OSError(2, Unprintable(), Unprintable()),  # type: ignore[arg-type]
    "os error of a name": lambda: OSError(2, "no", "a\udc80\0"),
    "syntax error": lambda: SyntaxError(Unprintable()),
    "surrogates": lambda: RuntimeError("a\udc80"),
    "null": NullError,
    "huge": lambda: RuntimeError("x" * (4 * LONGEST_MESSAGE)),
    "group": lambda: ExceptionGroup("several", [TextRaisesError(Ellipsis), ValueError(Unprintable())]),
    "group with a bad text": lambda: ExceptionGroup("a\udc80", [ValueError(1)]),
    "cannot pickle": lambda: CannotPickleError("text"),
    "exit": lambda: SystemExit(Unprintable()),
    "interrupt": lambda: KeyboardInterrupt(Unprintable()),
}


@pytest.mark.parametrize("name", UNPRINTABLE)
def test_every_exception_can_be_sent_after_masking(name):
    error = UNPRINTABLE[name]()
    kind = type(error)

    mask_error(error, SecretMask())

    format_exception(error).encode()
    assert "\0" not in format_exception(error)
    assert len(str(error)) <= LONGEST_MESSAGE
    repr(error)
    assert isinstance(error, kind)
    assert (type(error).__name__, type(error).__module__) == (kind.__name__, kind.__module__)
    recorded = outcome(error, SecretMask())["exception"]
    assert recorded.type.endswith(kind.__qualname__)
    recorded.model_dump_json()


def test_a_printable_exception_is_not_changed():
    error = OSError(2, "no such file", "data.txt")

    mask_error(error, SecretMask())

    assert (type(error), error.args, error.filename) == (FileNotFoundError, (2, "no such file"), "data.txt")


def test_an_exception_with_a_replaced_text_pickles_as_its_own_class():
    error = TextRaisesError("x", Ellipsis)
    error.args = (Ellipsis,)
    mask_error(error, SecretMask())

    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert (type(copied), copied.args) == (TextRaisesError, (Ellipsis,))


def test_a_huge_message_keeps_its_beginning_and_end():
    error = RuntimeError("first" + "x" * (4 * LONGEST_MESSAGE) + "last")

    mask_error(error, SecretMask())

    text = str(error)
    assert text.startswith("firstx")
    assert text.endswith("xlast")
    assert " characters …] " in text


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    "name",
    long_if(
        ["text raises", "repr raises", "refuses changes", "built-in", "null", "huge", "group", "cannot pickle"],
        {"repr raises", "refuses changes", "built-in", "null", "huge"},
    ),
)
def test_a_run_that_raises_it_is_sealed_as_failed(home: Path, name):
    error = UNPRINTABLE[name]()
    kind = type(error)

    @method(version="1")
    def fails() -> None:
        raise error

    with pytest.raises(kind):
        fails()

    bundles = Bundles(home)
    record = bundles.record()
    expected = Reason.TIMED_OUT if isinstance(error, TimeoutError) else Reason.ERROR
    assert (record.status, record.job_status.reason) == (Status.FAILED, expected)
    assert (bundles.one() / "manifest-sha256.txt").exists()
    assert bundles.failed_checks() == []


def test_an_odd_collection_in_an_exception_stops_no_masking():
    class Issues(list):
        def __init__(self, schema, items):
            super().__init__(items)
            self.schema = schema

    mask = SecretMask()
    mask.add("hunter2hunter2")
    cause = ValueError("the cause has hunter2hunter2")
    error = ValueError("hunter2hunter2")
    error.issues = Issues("s", ["hunter2hunter2"])
    error.__cause__ = cause
    mask_error(error, mask)
    assert "hunter2" not in f"{error} {error.issues} {cause}"
