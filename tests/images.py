"""Images without a registry: this machine's Python with what we depend on, and on it ours, by our Dockerfile."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from docker import APIClient
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
BASE = "executions-python"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
COMMIT = "c0ffee0123456789c0ffee0123456789c0ffee01"
_LEFT_OUT = {
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "EXTERNALLY-MANAGED",
    "site-packages",
    "dist-packages",
}
_ASK = """
import os, sys, sysconfig
paths = sysconfig.get_paths()
print(os.path.realpath(sys.executable), paths["stdlib"], paths["platstdlib"], paths["purelib"], sep="\\n")
"""


def ours(api: APIClient, name: str) -> str:
    """Build our image as deployments/docker/ says, without what the Methods compute with; return its *name*.

    Two that build at the same time give it two names: with another layer it is another image.
    """
    base = python_image(api)
    inside = ["pyproject.toml", "README.md", "LICENSE", "src", "flows", "deployments/docker/Dockerfile"]
    with TemporaryFile() as context:
        with tarfile.open(fileobj=context, mode="w") as archive:
            for part in inside:
                archive.add(ROOT / part, part, filter=_plain)
        context.seek(0)
        arguments = {"BASE": base, "EXTRAS": "", "COMMIT": COMMIT}
        _built(api, context, name, dockerfile="deployments/docker/Dockerfile", buildargs=arguments)
    return name


def python_image(api: APIClient) -> str:
    """Build an image of this machine's Python on the one with its core programs; return its name."""
    python, stdlib, platform, packages = _base_python()
    files = {Path(python), *_tree(stdlib), *_tree(platform)}
    copied = {path: path for path in files} | dict(_dependencies(Path(packages)))
    for library in _libraries(path for path in copied.values() if ".so" in path.name or path == Path(python)):
        copied.setdefault(library, library)
    written = (
        f"FROM executions-test\nADD root.tar /\nENV PATH={Path(python).parent}:/usr/bin:/bin\n"
        f"RUN ln -sf {python} /usr/bin/python3 && "
        f"printf '#!/bin/sh\\nexec {python} -m prefect \"$@\"\\n' > /usr/bin/prefect && chmod 755 /usr/bin/prefect\n"
    )
    # Some networks have certificates of their own, and not every pip looks for the system's.
    if CERTIFICATES.is_file():
        copied[CERTIFICATES] = CERTIFICATES.resolve()
        written += f"ENV PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES}\n"
    with TemporaryFile() as root, TemporaryFile() as context:
        with tarfile.open(fileobj=root, mode="w", dereference=True) as archive:
            for target, source in sorted(copied.items()):
                archive.add(source, str(target), recursive=False)
        with tarfile.open(fileobj=context, mode="w") as archive:
            member = tarfile.TarInfo("root.tar")
            member.size = root.tell()
            root.seek(0)
            archive.addfile(member, root)
            member = tarfile.TarInfo("Dockerfile")
            member.size = len(written)
            archive.addfile(member, io.BytesIO(written.encode()))
        context.seek(0)
        _built(api, context, BASE)
    return BASE


def _built(api: APIClient, context: object, tag: str, **options: object) -> None:
    said = []
    for line in api.build(
        fileobj=context, custom_context=True, tag=tag, network_mode="host", rm=True, decode=True, **options
    ):
        said.append(line.get("stream", "") + line.get("error", ""))
        assert "error" not in line, "".join(said[-60:])


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def _base_python() -> list[str]:
    base = getattr(sys, "_base_executable", sys.executable)
    return subprocess.run([base, "-c", _ASK], capture_output=True, text=True, check=True).stdout.split()


def _tree(folder: str) -> Iterator[Path]:
    for path in Path(folder).rglob("*"):
        inside = path.relative_to(folder).parts
        if path.is_file() and not _LEFT_OUT.intersection(inside) and not inside[0].startswith("config-"):
            yield path


def _dependencies(into: Path) -> Iterator[tuple[Path, Path]]:
    """All that our package needs to run, and pip: where each file goes, and where it lies here."""
    wanted, done = ["prefect-executions"], set()
    while wanted:
        name = wanted.pop()
        if re.sub(r"[-_.]+", "-", name).lower() in done:
            continue
        done.add(re.sub(r"[-_.]+", "-", name).lower())
        found = distribution(name)
        for told in found.requires or ():
            needed = Requirement(told)
            if needed.marker is None or any(needed.marker.evaluate({"extra": one}) for one in ("", "asyncio")):
                wanted.append(needed.name)
        if name != "prefect-executions":
            for file in found.files or ():
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    yield into / file, Path(str(file.locate()))
    pip = _pip()
    for path in pip.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield into / "pip" / path.relative_to(pip), path


def _pip() -> Path:
    found = find_spec("pip")
    if found is not None and found.origin:
        return Path(found.origin).parent
    base = getattr(sys, "_base_executable", sys.executable)
    told = subprocess.run(
        [base, "-c", "import pip; print(pip.__path__[0])"], capture_output=True, text=True, check=True
    )
    return Path(told.stdout.strip())


def _libraries(programs: Iterable[Path]) -> Iterator[Path]:
    """The system's libraries that programs name, by the paths under which they are looked for."""
    told = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    found = {Path(one) for one in re.findall(r"(?:=> |^\s+)(/\S+) \(", told, re.MULTILINE)}
    # Where /lib is a link to /usr/lib, an archive's own /lib would take its place.
    yield from {path.parent.resolve() / path.name for path in found}
