"""Time of export and import: many small executions, and one of 1 GiB compared with `zip -0` and `sha256sum`.

usage: bench_export.py [--executions 1000] [--megabytes 1024] [--rounds 3] [--aiida PYTHON] [FOLDER]

The folder (default: the system's for temporary files) needs 8 GB of free space. PYTHON is
the interpreter of a virtual environment with aiida-core, which then exports and imports
as many calculations. The other baselines run on the same files, in interleaved rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))

from benches import bench_at, kept
from prefect_executions.bundles.verify import verify
from prefect_executions.operations.export import export
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, OUTPUTS

MEBIBYTE = 1 << 20

AIIDA = textwrap.dedent(
    """
    import io, pathlib, sys, time
    from aiida import load_profile, orm
    from aiida.common.links import LinkType
    from aiida.manage.configuration import create_profile, get_config
    from aiida.tools.archive import create_archive, import_archive

    count, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])

    def use(name):
        load_profile(name, allow_switch=True)
        if orm.User.collection.count() == 0:
            orm.User(email="a@example.org").store()

    for name in ("theirs", "ours"):
        create_profile(
            get_config(create=True),
            name=name,
            email="a@example.org",
            storage_backend="core.sqlite_dos",
            storage_config={"filepath": str(folder / name)},
        )
    use("theirs")
    computer = orm.Computer(label="c", hostname="h", transport_type="core.local", scheduler_type="core.direct").store()
    nodes = []
    for number in range(count):
        calculation = orm.CalculationNode(computer=computer)
        picture = orm.SinglefileData(io.BytesIO(b"a picture of coins %d" % number), filename="picture.png")
        for name, given in (("picture", picture), ("values", orm.Dict({"threshold": number / 1000}))):
            calculation.base.links.add_incoming(given.store(), link_type=LinkType.INPUT_CALC, link_label=name)
        calculation.store()
        retrieved = orm.FolderData()
        for name in ("regions.csv", "labels.tif", "stdout.log", "stderr.log"):
            retrieved.base.repository.put_object_from_bytes(b"%s of %d" % (name.encode(), number), name)
        for name, result in (("retrieved", retrieved), ("metrics", orm.Dict({"regions": number}))):
            result.base.links.add_incoming(calculation, link_type=LinkType.CREATE, link_label=name)
            result.store()
        calculation.seal()
        nodes.append(calculation)
    begun = time.perf_counter()
    create_archive(nodes, filename=folder / "x.aiida", test_run=False)
    exported = time.perf_counter() - begun
    use("ours")
    begun = time.perf_counter()
    import_archive(folder / "x.aiida")
    print(exported, time.perf_counter() - begun, orm.QueryBuilder().append(orm.CalculationNode).count())
    """
)


def row(measure: str, figure: str, against: str, goal: str) -> None:
    print(f"| {measure} | {figure} | {against} | {goal} |", flush=True)


def seconds(act: Callable[[], object]) -> float:
    begun = perf_counter()
    act()
    return perf_counter() - begun


def both_times(act: Callable[[], object]) -> str:
    """Wall and CPU time: only the latter can be compared on a busy machine."""
    begun = process_time()
    wall = seconds(act)
    return f"{wall:.2f} s ({process_time() - begun:.2f} s of CPU time)"


def run(command: str, folder: Path) -> None:
    subprocess.run(command, shell=True, check=True, cwd=folder, stdout=subprocess.DEVNULL)  # noqa: S602 - our own words


def exported(bench: Workbench, target: Path) -> None:
    with target.open("wb") as file:
        export(Catalog(bench), list(bench.archive.ids()), file.write)


def many_small(here: Path, count: int, aiida: str | None) -> None:
    theirs, ours, target = bench_at(here / "theirs"), bench_at(here / "ours"), here / "many.zip"
    for _ in range(count):
        kept(theirs, str(uuid4()))
    not_measured = "not measured: --aiida PYTHON"
    exporting = both_times(lambda: exported(theirs, target))
    importing = both_times(lambda: import_bundles(ours, str(target), ImportPolicy.of(Settings(), datetime.now(UTC))))
    repeated = both_times(lambda: import_bundles(ours, str(target), ImportPolicy.of(Settings(), datetime.now(UTC))))
    baselines = {"export": not_measured, "import": not_measured}
    if aiida:
        (here / "aiida").mkdir()
        environment = os.environ | {"AIIDA_PATH": str(here / "aiida")}
        command = [aiida, "-W", "ignore", "-c", AIIDA, str(count), str(here / "aiida")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        export_time, import_time, count_found = done.stdout.split()[-3:]
        baselines = {
            "export": f"aiida-core {float(export_time):.2f} s",
            "import": f"aiida-core {float(import_time):.2f} s ({count_found} calculations)",
        }
    what = f"{count:,} small executions"
    row(f"export of {what}", exporting, baselines["export"], "<= aiida-core")
    row(f"import of {what} into an empty home", importing, baselines["import"], "<= aiida-core")
    row("the same import once more", repeated, "", "")


def one_large(here: Path, megabytes: int, rounds: int) -> None:
    bench, target = bench_at(here / "large"), here / "one.zip"
    kept(bench, outputs={**OUTPUTS, "outputs/large.bin": os.urandom(MEBIBYTE) * megabytes})
    folder = bench.folder / EXECUTION_ID
    took: dict[str, list[float]] = {"export": [], "zip": [], "verify": [], "sum": [], "verify zip": [], "sum zip": []}
    for _ in range(rounds):
        (here / "base.zip").unlink(missing_ok=True)
        took["zip"].append(seconds(lambda: run(f"zip -0 -q -r {here}/base.zip {EXECUTION_ID}", bench.folder)))
        took["export"].append(seconds(lambda: exported(bench, target)))
        took["sum"].append(seconds(lambda: run("sha256sum -c --quiet manifest-sha256.txt", folder)))
        took["verify"].append(seconds(lambda: verify(folder)))
        took["sum zip"].append(seconds(lambda: run("sha256sum one.zip", here)))
        took["verify zip"].append(seconds(lambda: verify(target)))
    what = f"one execution of {megabytes} MiB"
    compare(f"export of {what}", took["export"], took["zip"], "zip -0 of the folder", "<= 1.5")
    compare(f"verify of {what}, a folder", took["verify"], took["sum"], "sha256sum -c of it", "<= 2")
    compare(f"verify of {what}, the exported zip", took["verify zip"], took["sum zip"], "sha256sum of the zip", "<= 2")


def compare(measure: str, ours: list[float], theirs: list[float], name: str, goal: str) -> None:
    ratio = median(mine / other for mine, other in zip(ours, theirs, strict=True))
    row(measure, f"{median(ours):.2f} s", f"{name} {median(theirs):.2f} s: {ratio:.2f} times", goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=1000)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--aiida", default=None)
    parser.add_argument("folder", nargs="?", default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="export-"))
    try:
        row("measure", "figure", "baseline", "goal")
        row("---", "---", "---", "---")
        many_small(folder, options.executions, options.aiida)
        one_large(folder, options.megabytes, options.rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
