"""A file that a Method reads, as its own code sees it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from prefect_executions.errors import InputError

FILE_FORMAT = "uri-reference"
"""JSON Schema format of an `InputFile`: a path or an fsspec URL."""

DESCRIPTORS = "prefect_executions.flow.file"
"""The module by which Prefect loads a descriptor: ``<it>:<path>`` is an entrypoint."""

_ENDINGS = (".json", ".yaml", ".yml")

CCP_FILE = "file"
"""CCP's format of a file: its placeholder stands for the content in base64."""


def descriptor_in(entrypoint: str) -> str | None:
    """Return the path of the descriptor that *entrypoint* names, or None where it names something else."""
    path = entrypoint.removeprefix(f"{DESCRIPTORS}:")
    return path if path.lower().endswith(_ENDINGS) else None


class InputFile(str):
    """A file that a Method reads: given as a path or any fsspec URL, staged before the Method starts.

    It is text, so that every library that opens a path takes it: what was given
    before staging, the path of the staged copy inside the Method::

        @method(version="1.0.0")
        def count(text: InputFile):
            text.read_text()

    Attributes:
        origin: The path or URL as it was given.
    """

    __slots__ = ("origin",)
    origin: str

    def __new__(cls, place: str | os.PathLike[str], *, origin: str | None = None) -> Self:
        """Name a file at *place*; *origin* is where a staged copy came from."""
        made = super().__new__(cls, os.fspath(place))
        made.origin = origin or (place.origin if isinstance(place, InputFile) else str(made))
        return made

    @property
    def path(self) -> Path:
        """The file as a path.

        Raises:
            InputError: If it is a URL that nothing has staged.
        """
        if "://" in self:
            raise InputError(f"{self.partition('?')[0]} is not staged: an InputFile is staged when its Method runs")
        return Path(self)

    def open(self, mode: str = "r", **options: Any) -> IO[Any]:
        """Open the file, as `pathlib.Path.open` does."""
        return self.path.open(mode, **options)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the file's text."""
        return self.path.read_text(encoding=encoding)

    def read_bytes(self) -> bytes:
        """Return the file's bytes."""
        return self.path.read_bytes()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._of, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "format": FILE_FORMAT}

    @classmethod
    def _of(cls, value: object) -> InputFile:
        if isinstance(value, InputFile):
            return value
        if isinstance(value, str | os.PathLike):
            return cls(value)
        raise ValueError("a file is given as a path or a URL")
