"""Time and memory of sealing, compared with `sha256sum` and `zip`.

usage: python tests/benchmarks/bench_seal.py [FOLDER]

The folder (default: the system's for temporary files) needs 25 GB of free space.
Every figure is the median of interleaved rounds on the same files. The time includes
everything: digests, output.zip, job status, PROV, crate and manifest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

from bundle_makers import an_open_bundle, finish
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.seal import seal
from prefect_executions.lifecycle.history import JobStatus
from records import a_job_status

ROUNDS = 5
MEBIBYTE = 1 << 20

SEAL_IN_A_PROCESS_OF_ITS_OWN = textwrap.dedent(
    """
    import resource, sys
    from pathlib import Path
    from bundle_makers import finish
    from prefect_executions.bundles.open_bundle import OpenBundle

    finish(OpenBundle.load(Path(sys.argv[1]), sys.argv[2]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
)


def row(measure: str, figure: str, against: str, goal: str) -> None:
    print(f"| {measure} | {figure} | {against} | {goal} |", flush=True)


def seconds(act: Callable[[], object]) -> float:
    began = perf_counter()
    act()
    return perf_counter() - began


def run(command: str, folder: Path) -> None:
    subprocess.run(command, shell=True, check=True, cwd=folder, stdout=subprocess.DEVNULL)  # noqa: S602 - our own words


def unseal(bundle: OpenBundle) -> None:
    """Remove the files that sealing wrote, so that it can be measured again."""
    for name in ("manifest-sha256.txt", "output.zip"):
        (bundle.folder / name).unlink(missing_ok=True)
    bundle.write_document(a_job_status(outputs=()))
    (bundle.scratch / "gathered.json").unlink(missing_ok=True)


def one_large_file(workbench: Path) -> None:
    bundle = an_open_bundle(workbench)
    with (bundle.folder / "outputs/large.bin").open("wb") as stream:
        for _ in range(1024):
            stream.write(os.urandom(MEBIBYTE))
    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(seconds(lambda: run("sha256sum large.bin", bundle.folder / "outputs")))
        ours.append(seconds(lambda: finish(bundle)))
        unseal(bundle)
    compare("seal of 1 GiB in one incompressible file", ours, theirs, "sha256sum")
    bundle.discard()


def many_small_files(workbench: Path) -> None:
    bundle = an_open_bundle(workbench)
    for number in range(10_000):
        (bundle.folder / f"outputs/{number:05d}.bin").write_bytes(os.urandom(1000))
    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(
            seconds(lambda: run("sha256sum outputs/*.bin && zip -0 -q -r ../baseline.zip outputs", bundle.folder))
        )
        (workbench / "baseline.zip").unlink()
        ours.append(seconds(lambda: finish(bundle)))
        unseal(bundle)
    compare("seal of 10,000 files of 1 kB", ours, theirs, "sha256sum + zip -0")
    bundle.discard()


def small_bundle(workbench: Path) -> None:
    gathering, sealing = [], []
    for number in range(50):
        bundle = an_open_bundle(workbench / str(number))
        gathering.append(seconds(lambda bundle=bundle: gather(bundle)))
        bundle.write_document(bundle.read(JobStatus).model_copy(update={"outputs": gather(bundle).outputs}))
        sealing.append(seconds(lambda bundle=bundle: seal(bundle)))
        bundle.discard()
    row("sealing, 4 outputs", f"{median(sealing) * 1000:.1f} ms", "-", "< 3 ms")
    row("gathering, 4 outputs", f"{median(gathering) * 1000:.1f} ms", "-", "-")


def memory(workbench: Path) -> None:
    small, large = (peak_memory(workbench, size) for size in (10, 10_000))
    row("peak memory added by sealing 10 GB", f"{large - small} MiB", f"{small} MiB with 10 MB", "<= 100 MiB")


def peak_memory(workbench: Path, megabytes: int) -> int:
    bundle = an_open_bundle(workbench)
    with (bundle.folder / "outputs/large.gz").open("wb") as sparse:
        sparse.truncate(megabytes * MEBIBYTE)
    path = str(Path(__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", SEAL_IN_A_PROCESS_OF_ITS_OWN, str(workbench), bundle.id],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    bundle.discard()
    return int(result.stdout) // 1024


def compare(measure: str, ours: list[float], theirs: list[float], against: str) -> None:
    ratio = median(ours) / median(theirs)
    row(measure, f"{median(ours):.2f} s", f"{against} {median(theirs):.2f} s: {ratio:.2f} x", "<= 2.0 x")


def main(folder: str | None = None) -> None:
    """Print one row of a table for each measure."""
    if shutil.which("zip") is None or shutil.which("sha256sum") is None:
        sys.exit("the programs zip and sha256sum are needed")
    with tempfile.TemporaryDirectory(dir=folder) as workbench:
        for measure in (small_bundle, many_small_files, one_large_file, memory):
            measure(Path(workbench) / measure.__name__)


if __name__ == "__main__":
    main(*sys.argv[1:])
