"""The messages of the package's errors, which may contain names from hostile documents."""

from __future__ import annotations

import pytest

from prefect_executions.errors import BundleError, ExecutionsError, NameRefusedError, shortened


@pytest.mark.parametrize("kind", [ExecutionsError, BundleError, NameRefusedError])
def test_a_long_line_of_a_message_is_shortened_in_the_middle(kind: type[ExecutionsError]) -> None:
    text = str(kind("The name " + "x" * 9000 + " is refused.\nNext: executions list"))

    first, second = text.split("\n")
    assert len(first) < 2100
    assert first.startswith("The name xxx")
    assert first.endswith("xxx is refused.")
    assert second == "Next: executions list"


def test_other_messages_stay() -> None:
    text = "\n".join(["x" * 2000] * 10)

    assert str(BundleError(text)) == shortened(text) == text
