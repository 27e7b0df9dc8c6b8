"""The limits that docs/limits.md states about masking are the limits."""

from __future__ import annotations

import base64
import codecs

import pytest

from prefect_executions.capture.secrets import MASK, SecretMask

SECRET = "correct-Horse7battery"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def is_masked(text: str) -> bool:
    return MASK in SecretMask([SECRET]).mask(text)


@pytest.mark.parametrize("text", [SECRET, encoded(SECRET), SECRET.encode().hex(), f'{{"key": "{SECRET}"}}'])
def test_the_usual_forms_of_a_secret_are_masked(text):
    assert is_masked(text)


@pytest.mark.parametrize(
    "text",
    [
        encoded(encoded(SECRET)),
        SECRET[::-1],
        " ".join(SECRET),
        f"{SECRET[:8]}\n{SECRET[8:]}",
        SECRET.upper(),
        codecs.encode(SECRET, "rot13"),
        SECRET[:12],
    ],
)
def test_the_forms_that_masking_does_not_detect_are_those_that_the_docs_state(text):
    assert not is_masked(text)
