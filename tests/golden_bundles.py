"""Makes the golden bundles of the current format: ``python tests/golden_bundles.py``.

It is run once for a format, when the format is complete. It replaces no file: a golden
bundle never changes. It prints the lines for the tables in `test_golden_bundles.py`.
"""

from __future__ import annotations

import zipfile
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from bundle_makers import a_complete_bundle, contents
from prefect_executions.comparison.verdict import Verdict
from prefect_executions.documents import FORMAT
from prefect_executions.executions.record import ExecutionRecord
from records import a_cancelled_record, a_full_record, a_never_started_record, a_record, a_verdict

BUNDLES = Path(__file__).parent / "bundles"

RECORDS: dict[str, tuple[ExecutionRecord, Verdict | None]] = {
    "": (a_record(), None),
    "-cancelled": (a_cancelled_record(), None),
    "-failed": (a_full_record(), None),
    "-never-started": (a_never_started_record(), None),
    "-replay": (a_record(), a_verdict()),
}


def make(target: Path, record: ExecutionRecord, verdict: Verdict | None) -> None:
    """Write the sealed bundle of *record* as a zip without file times; an existing file is an error."""
    with TemporaryDirectory() as workbench, target.open("xb") as stream:
        bundle = a_complete_bundle(Path(workbench), record, verdict)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path, data in contents(bundle.folder).items():
                entry = zipfile.ZipInfo(f"{bundle.id}/{path}")
                entry.external_attr = 0o644 << 16
                zipped.writestr(entry, data, zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    for name, (record, verdict) in RECORDS.items():
        target = BUNDLES / f"format-{FORMAT}{name}.zip"
        make(target, record, verdict)
        print(f'    "{target.name}": "{sha256(target.read_bytes()).hexdigest()}",')
