"""Module whose attributes are descriptor files, so that a descriptor can be the entrypoint of a deployment.

Prefect loads ``prefect_executions.flow.file:flows/sky/method.json`` as it loads
any ``module:name``: it imports the module, and gets the attribute ``flows/sky/method`` and
then its attribute ``json``, because a dot separates names.
"""

from __future__ import annotations

from typing import Any

from prefect_executions.flow import descriptor as _descriptor
from prefect_executions.methods.model import descriptor_in as _descriptor_in


class _Path:
    """The part of a path before a dot."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        return _at(f"{self._prefix}.{name}")


def _at(path: str) -> Any:
    if path.rpartition(".")[2].startswith("__"):
        raise AttributeError(f"{path!r} is not a descriptor file")
    return _descriptor.DescriptorMethod.from_file(path) if _descriptor_in(path) else _Path(path)


def __getattr__(name: str) -> Any:
    return _at(name)
