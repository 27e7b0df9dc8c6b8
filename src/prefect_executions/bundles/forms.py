"""The words for how bundles leave and come: in which form, how much of them, and whose they are."""

from __future__ import annotations

from enum import StrEnum


class Form(StrEnum):
    """In which form bundles leave."""

    ZIP = "zip"
    """``<id>/`` with the bundle, for each."""
    BAGIT = "bagit"
    """A zipped bag, which `bagit.py` validates."""
    CRATE = "crate"
    """A zipped RO-Crate: ``ro-crate-metadata.json`` lies at its root."""


class Level(StrEnum):
    """How much of a bundle leaves."""

    FULL = "full"
    OUTPUTS = "outputs"
    """All but the staged inputs."""
    METADATA = "metadata"
    """The record and the code: no inputs and no outputs."""


class Kind(StrEnum):
    """Whose bundle it is."""

    BUNDLE = "bundle"
    """Ours, in the format of this house."""
    CCP = "ccp"
    """CCP's, with a folder for each part."""
    FLAT = "ccp-flat"
    """CCP's as it is downloaded: ``metadata_method.json``."""
