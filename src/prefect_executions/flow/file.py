"""The module whose attributes are the files of descriptors, so that one can be the entrypoint of a deployment.

Prefect loads ``prefect_executions.flow.file:flows/sky/method.json`` as it loads
any ``module:name``: it imports the module and asks for the attribute
``flows/sky/method`` and of that for ``json``, because a dot parts names.
"""

from __future__ import annotations

from typing import Any

from prefect_executions.flow import descriptor as _descriptor
from prefect_executions.methods.model import descriptor_in as _descriptor_in


class _Path:
    """The beginning of a path."""

    def __init__(self, begun: str) -> None:
        self._begun = begun

    def __getattr__(self, name: str) -> Any:
        return _at(f"{self._begun}.{name}")


def _at(path: str) -> Any:
    if path.rpartition(".")[2].startswith("__"):
        raise AttributeError(f"{path!r} is no file of a descriptor")
    return _descriptor.DescriptorMethod.from_file(path) if _descriptor_in(path) else _Path(path)


def __getattr__(name: str) -> Any:
    return _at(name)
