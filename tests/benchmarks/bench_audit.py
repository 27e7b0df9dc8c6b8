"""What an audit of an archive with many signed executions costs, against listing it and reading each seal.

``python tests/benchmarks/bench_audit.py --executions 10000``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from prefect_executions.archive.archive import Archive, Content, open_archive
from prefect_executions.attestation.dsse import PAYLOAD_TYPE, sealed_envelope, statement_of
from prefect_executions.bundles import layout, manifest
from prefect_executions.executions.record import BundleFile, ExecutionRecord
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.operations.audit import audit
from prefect_executions.operations.checkpoints import write_checkpoints
from prefect_executions.workbench.workbench import Workbench
from records import NOON, a_job_status, a_record, a_request
from signers import a_key, trusting


def record_of(number: int) -> ExecutionRecord:
    execution_id = f"{number:08x}-6f0c-4f2e-9a41-3d6d5d3f2e10"
    status = a_job_status().model_copy(update={"job_id": execution_id})
    return a_record(request=a_request(execution_id=execution_id), job_status=status)


def seal(archive: Archive, record: ExecutionRecord) -> None:
    """Archive what a sealed bundle has, with less in it."""
    documents = (record.agent, record.method, record.request, record.infrastructure, record.instance, record.job_status)
    held = {document.file_name: document.to_json() for document in documents}
    held |= {layout.PROVENANCE: b"<prov/>", layout.CRATE: b"{}", layout.OUTPUT_ZIP: record.id.encode()}
    files = [BundleFile(path, sha256(data).hexdigest(), len(data)) for path, data in held.items()]
    held[layout.MANIFEST] = manifest.render(files)
    closing = BundleFile(layout.MANIFEST, sha256(held[layout.MANIFEST]).hexdigest(), len(held[layout.MANIFEST]))
    signed = sealed_envelope(PAYLOAD_TYPE, statement_of(record, closing, files), a_key()).to_json()
    held[layout.ATTESTATION] = signed
    files += [closing, BundleFile(layout.ATTESTATION, sha256(signed).hexdigest(), len(signed))]
    zipped = [file for file in files if file.path == layout.OUTPUT_ZIP]
    small = [file for file in files if file.path != layout.OUTPUT_ZIP]
    archive.seal(record.id, Content(Path(), small, zipped, [], record.status, record.finished, NOON, in_memory=held))


def timed(name: str, seconds: float, count: int, base: float | None = None) -> None:
    ratio = f"{seconds / base:.2f}" if base else "1"
    print(f"| {name} | {seconds:.2f} s | {seconds / count * 1e3:.2f} ms | {ratio} |", flush=True)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--executions", type=int, default=10_000)
    count = asked.parse_args().executions
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        archive = open_archive(str(Path(folder, "archive")))
        for number in range(count):
            seal(archive, record_of(number))
        bench = Workbench(
            Path(folder, "bench"),
            open_archive=lambda: archive,
            open_ledger=lambda: Ledger.open("sqlite://"),
            signing_key=a_key,
        )
        print(f"\n| audit of {count} signed executions in a folder | time | each | ratio |\n|---|---|---|---|")
        began = time.perf_counter()
        objects = sum(1 for _ in archive.listing())
        archive.seals_of(list(archive.ids()))
        base = time.perf_counter() - began
        timed(f"list {objects} objects, read each seal", base, count)
        began = time.perf_counter()
        written = write_checkpoints(bench)
        timed(f"write {written} seals into checkpoints, with their proofs", time.perf_counter() - began, count, base)
        began = time.perf_counter()
        found = list(audit(archive, trusting()))
        timed("audit", time.perf_counter() - began, count, base)
        assert not [one for one in found if one.weight == "violation"], found[0]


if __name__ == "__main__":
    main()
