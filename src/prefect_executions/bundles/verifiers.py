"""Verifies many bundles in this process and, if there are many small ones, in other processes as well.

Law: the results are those of `verified_record`, in the order of the sources. A verifier process writes
nothing and decides nothing: it gets the bytes of bundles and returns reports. If it dies, this process
verifies its bundles. It ends with this process, because its input ends then.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import IO, NamedTuple, cast

from prefect_executions.attestation.policy import SignaturePolicy
from prefect_executions.bundles.source import HeldSource, Source
from prefect_executions.bundles.verify import Report, verified_record
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import ExecutionRecord

MANY = 200
"""Bundles that are worth other processes: to start one takes as long as to verify 150 small bundles."""

LARGEST = 1 << 20
"""The largest bundle in bytes that is sent to another process."""

_MOST_PROCESSES = 3
"""Verifier processes at most: this process can feed no more."""

_SHARE, _SHARE_BYTES = 16, 1 << 20
"""Bundles that are sent together, and their bytes, which the last one may exceed."""

_AHEAD = 8
"""Shares that are verified before an earlier one is; they stay in memory."""

_START = "import sys; sys.path[:] = {path!r}; from {module} import serve; serve()"


class ReportedSource(NamedTuple):
    """A source with the report on its bundle, and its record if the bundle passed in this process."""

    source: Source
    report: Report
    record: ExecutionRecord | None = None


def spare_cores() -> int:
    """Return how many cores this process may use beside its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores - 1, _MOST_PROCESSES)


def verified_records(
    sources: Iterable[Source], *, limits: Limits, signatures: SignaturePolicy, processes: int
) -> Generator[ReportedSource]:
    """Verify *sources* as `verified_record` does, with as many other *processes*; close the iterator to end them.

    A few sources beyond the last result may have been read and verified. A source in memory has been read completely.
    """
    threads = ThreadPoolExecutor(max(processes, 1), thread_name_prefix="verify")
    with ExitStack() as pipes, threads, ExitStack() as stack:  # a thread may use a pipe until its process has ended
        verifiers = []
        with suppress(OSError):  # no more processes can be started
            for _ in range(processes):
                verifiers.append(_VerifierProcess(threads, limits, signatures))
                pipes.callback(verifiers[-1].close)
                stack.callback(verifiers[-1].end)
        waiting: deque[_Share] = deque()
        for part in _parts(sources, _SHARE if processes else 1):
            copies = _copies(part) if any(verifier.idle for verifier in verifiers) else []
            if len(copies) == len(part):
                verifier = next(verifier for verifier in verifiers if verifier.idle)
                waiting.append(_Share(part, reports=verifier.submit(copies)))
            else:
                waiting.append(_Share(part, [_verified(source, limits, signatures) for source in part]))
            while waiting and (len(waiting) > _AHEAD or waiting[0].done):
                yield from waiting.popleft().results(limits, signatures)
        while waiting:
            yield from waiting.popleft().results(limits, signatures)


def _verified(source: Source, limits: Limits, signatures: SignaturePolicy) -> ReportedSource:
    return ReportedSource(source, *verified_record(source, limits=limits, signatures=signatures))


def _parts(sources: Iterable[Source], most: int) -> Iterator[list[Source]]:
    part: list[Source] = []
    size = 0
    for source in sources:
        part.append(source)
        size += sum(source.files.values())
        if len(part) == most or size >= _SHARE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _copies(part: Iterable[Source]) -> list[HeldSource]:
    """Return *part* in memory; a bundle that is large or cannot be read is left out."""
    copies = []
    for source in part:
        if isinstance(source, HeldSource):
            copies.append(source)
        elif sum(source.files.values()) <= LARGEST:
            with suppress(BundleError):
                copies.append(HeldSource(source))
    return copies


class _Share(NamedTuple):
    """Sources that are verified together: here, or by another process."""

    sources: list[Source]
    verified: list[ReportedSource] | None = None
    reports: Future[list[Report]] | None = None

    @property
    def done(self) -> bool:
        return self.reports is None or self.reports.done()

    def results(self, limits: Limits, signatures: SignaturePolicy) -> Iterator[ReportedSource]:
        if self.verified is not None:
            yield from self.verified
            return
        try:
            reports = self.reports.result() if self.reports else []
        except Exception:  # noqa: BLE001 - whatever the other process died of, or left half-written
            reports = []
        if len(reports) == len(self.sources):
            yield from map(ReportedSource, self.sources, reports)
        else:
            yield from (_verified(source, limits, signatures) for source in self.sources)


class _VerifierProcess:
    """A process that verifies one share at a time, and the thread that waits for it."""

    def __init__(self, threads: ThreadPoolExecutor, limits: Limits, signatures: SignaturePolicy) -> None:
        """Start it.

        Raises:
            OSError: If no process can be started.
        """
        # As a spawned process of `multiprocessing`, but without the caller's main module, which may have no guard.
        command = [sys.executable or "", "-P", "-c", _START.format(path=sys.path, module=__name__)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)  # noqa: S603 - our own code
        self._pipes = cast("tuple[IO[bytes], IO[bytes]]", (self._process.stdin, self._process.stdout))
        self._threads = threads
        # The default mappings of a policy cannot be pickled.
        plain = replace(signatures, trusted=dict(signatures.trusted), names=dict(signatures.names))
        self._last = threads.submit(self._exchange, (limits, plain))

    @property
    def idle(self) -> bool:
        """Whether it has started and waits for a share; one that died is never idle."""
        return self._last.done() and self._last.exception() is None

    def submit(self, sources: list[HeldSource]) -> Future[list[Report]]:
        """Return the future reports on *sources*."""
        self._last = self._threads.submit(self._exchange, sources)
        return self._last

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close its pipes, which no thread uses any more."""
        for pipe in self._pipes:
            with suppress(OSError):  # a request that it did not read
                pipe.close()

    def _exchange(self, request: object) -> list[Report]:
        requests, answers = self._pipes
        _send(request, requests)
        reports: list[Report] = pickle.load(answers)  # noqa: S301 - a pipe from our own code
        return reports


def _send(value: object, stream: IO[bytes]) -> None:
    stream.write(pickle.dumps(value))  # in one call: each one waits for the interpreter lock
    stream.flush()


def serve() -> None:
    """Verify shares from stdin and write their reports to stdout, until stdin ends; the first request has the terms."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in the terminal ends the parent, which ends this process
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write between the answers
    with suppress(EOFError, BrokenPipeError):
        limits, signatures = pickle.load(requests)  # noqa: S301 - a pipe from our parent
        _send([], answers)
        while True:
            sources: list[Source] = pickle.load(requests)  # noqa: S301 - as above
            _send([_verified(source, limits, signatures).report for source in sources], answers)
