"""All benchmarks as one table: ``python tests/benchmarks``.

It takes about half an hour and 25 GB of free disk. S3 is measured where
EXECUTIONS_TEST_S3 names a server, Prefect where PREFECT_API_URL does (else the
embedded server; settle on a server of its own). Nothing else should be running.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    "bench_flow.py",
    "bench_events.py",
    "bench_settle.py",
    "bench_seal.py",
    "bench_export.py",
    "bench_ledger.py",
    "bench_search.py",
    "bench_lineage.py",
    "bench_audit.py",
    "bench_archive.py",
)


def main() -> int:
    """Run each script in a process of its own and return how many failed."""
    failed = 0
    for script in SCRIPTS:
        if script == "bench_archive.py" and not os.environ.get("EXECUTIONS_TEST_S3"):
            print("S3 is not measured: set EXECUTIONS_TEST_S3 (see .ci/services/seaweedfs.sh)", file=sys.stderr)
            continue
        failed += bool(subprocess.run([sys.executable, HERE / script], check=False).returncode)
    return failed


if __name__ == "__main__":
    sys.exit(main())
