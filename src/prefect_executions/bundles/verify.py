"""Finds out whether a bundle is whole and tells one story, with nothing but the bundle.

No network, server or ledger is asked. A digest finds every change that did not
make the manifest anew; for those that did, the documents, PROV and crate are held
against each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from prefect_executions.attestation.keys import VerifyingKey
from prefect_executions.bundles.checks import CHECKS, Unchecked
from prefect_executions.bundles.evidence import Evidence
from prefect_executions.bundles.source import Source, open_source
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.errors import BundleError

SHOWN = 100
"""How many faults of one check are told; the rest is counted."""

DEFAULT_LIMITS = Limits()
NOBODY: Mapping[str, VerifyingKey] = MappingProxyType({})
"""The keys of those whose signature is believed, where nobody said whose."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    faults: tuple[str, ...] = ()
    """One sentence for each fault, with the file and both values."""
    unchecked: tuple[str, ...] = ()
    """One sentence for each thing that could not be looked at, because it is not kept there."""

    @property
    def passed(self) -> bool:
        return not self.faults


@dataclass(frozen=True)
class Report:
    """What a verification found."""

    checks: tuple[Check, ...]
    signers: tuple[str, ...] = ()
    """The ids of the keys that its signatures claim to be of; what became of the claim the checks tell."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault, with the name of its check."""
        return tuple(f"{check.name}: {fault}" for check in self.checks for fault in check.faults)

    @property
    def unchecked(self) -> tuple[str, ...]:
        return tuple(f"{check.name}: {words}" for check in self.checks for words in check.unchecked)


def verify(
    bundle: Path | Source,
    *,
    limits: Limits = DEFAULT_LIMITS,
    only: Collection[str] | None = None,
    trusted: Mapping[str, VerifyingKey] = NOBODY,
) -> Report:
    """Check a bundle: a folder, a zip of that folder, or what another room hands in.

    A damaged bundle is a report with faults and no error. *only* names the checks
    to make, of `CHECKS`; the others are left out. *trusted* are the keys of those whose
    signature is believed, by their ids; without any a signature is told and not judged.

    Raises:
        NotFoundError: If there is nothing at the path.
    """
    names = [name for name in CHECKS if only is None or name in only]
    if not isinstance(bundle, Path):
        return _report(Evidence(bundle, limits, trusted), names)
    try:
        with open_source(bundle, limits) as source:
            return _report(Evidence(source, limits, trusted), names)
    except BundleError as error:
        # The zip around the bundle, or the folder itself, cannot be read.
        return Report((Check("layout", (f"{bundle.name}: {error}",)),))


def _report(evidence: Evidence, names: Collection[str]) -> Report:
    return Report(tuple(_check(name, evidence) for name in names), _signers(evidence))


def _signers(evidence: Evidence) -> tuple[str, ...]:
    with suppress(BundleError):
        return tuple(one.key_id for one in evidence.envelope.signatures)
    return ()


def _check(name: str, evidence: Evidence) -> Check:
    found: list[str] = []
    unchecked: list[str] = []
    more = 0
    try:
        for sentence in CHECKS[name](evidence):
            kind = unchecked if isinstance(sentence, Unchecked) else found
            if len(kind) < SHOWN:
                kind.append(str(sentence))
            else:
                more += kind is found
    except BundleError as error:
        found.append(str(error))
    if more:
        found.append(f"and {more} more")
    return Check(name, tuple(found), tuple(unchecked))
