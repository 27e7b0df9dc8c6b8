"""The environment, read once by the door that starts and handed down as a value."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from prefect_executions.durations import parse_duration
from prefect_executions.errors import SettingsError

_PREFIX = "EXECUTIONS_"


class ArchiveLevel(StrEnum):
    """Which data of an execution goes to the archive; its record always does."""

    FULL = "full"
    """The record, the staged inputs and the outputs."""
    OUTPUTS = "outputs"
    """The record and the outputs; inputs are kept by reference and digest."""
    NONE = "none"
    """The record alone."""


class DirtyTree(StrEnum):
    """What to do when the Method's repository has uncommitted changes."""

    RECORD = "record"
    REFUSE = "refuse"


class ImportNames(StrEnum):
    """Which names the files of an imported bundle may have."""

    PORTABLE = "portable"
    """Those that every system can hold, and holds apart."""
    ANY = "any"
    """Those that this system can hold."""


class Settings(BaseSettings):
    """What the operator sets, by environment variables that begin with ``EXECUTIONS_``."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")

    home: Path = Field(default=Path("~/.executions"), description="The folder that the defaults below lie in.")
    archive: str = Field(
        default="",
        description="Where sealed bundles are kept: a folder, any fsspec URL (s3://bucket/prefix), or "
        "block:NAME for a Prefect RemoteFileSystem block. Default: archive in the home folder.",
    )
    workbench: Path | None = Field(
        default=None, description="The folder of live bundles. Default: workbench in the home folder."
    )
    ledger: SecretStr = Field(
        default=SecretStr(""),
        description="The index: sqlite:///file or postgresql://user:password@host/name. "
        "Default: ledger.db in the home folder.",
    )
    archive_level: ArchiveLevel = Field(
        default=ArchiveLevel.FULL, description="The archive level of Methods that name none: full, outputs or none."
    )
    input_limit: int = Field(
        default=1024**3, ge=0, description="Staged inputs above this size, in bytes, are kept by reference and digest."
    )
    environment: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Names of further environment variables to record, separated by commas."
    )
    method_types: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Further terms for the type of a Method, separated by commas."
    )
    dirty: DirtyTree = Field(
        default=DirtyTree.RECORD, description="record or refuse a run whose repository has uncommitted changes."
    )
    diff_limit: int = Field(
        default=1024**2, ge=0, description="An uncommitted diff is recorded up to this size, in bytes."
    )
    code_commit: str = Field(
        default="",
        description="The commit that the code comes from, where no repository can be seen, as in a container.",
    )
    image: str = Field(default="", description="The container image of the run, which cannot be seen from inside.")
    image_digest: str = Field(default="", description="The digest of that image, as sha256:HEX.")
    agent: str = Field(
        default="", description="Who asks for executions, where no token says it: a name, e-mail or ORCID URL."
    )
    runtime: str = Field(
        default="process", description="What runs the scripts of descriptor Methods: process, docker or kubernetes."
    )
    runtime_image: str = Field(
        default="", description="The container image of descriptor Methods that name none, where a runtime needs one."
    )
    runtime_network: str = Field(
        default="", description="The network of these scripts: one of the Docker engine's, bridge by default, or host."
    )
    cpus: float | None = Field(
        default=None,
        gt=0,
        description="How many CPUs these scripts may use, each replica for itself; 'executions submit --cpus' sets it. "
        "Refused where it cannot be held.",
    )
    memory: int | None = Field(default=None, gt=0, description="How much memory, in bytes; alike.")
    gpus: int | None = Field(default=None, gt=0, description="How many GPUs; alike.")
    time_limit: timedelta | None = Field(
        default=None,
        description="How long a Method's code may run, in seconds; a shorter limit of the Method's own holds as well.",
    )
    archive_timeout: timedelta = Field(
        default=timedelta(minutes=10),
        description="How long one upload is tried, in seconds, before it is left pending.",
    )
    hook_timeout: timedelta = Field(
        default=timedelta(seconds=20),
        description="How long a state hook and what follows it may take, in seconds; settle does the rest.",
    )
    import_limit: int = Field(
        default=20 * 1024**3, ge=0, description="What one import may unfold to, in bytes, on the disk and elsewhere."
    )
    import_entries: int = Field(
        default=500_000, ge=1, description="How many files one import may have, and how many folders."
    )
    import_names: ImportNames = Field(
        default=ImportNames.PORTABLE,
        description="portable: an import is refused when a name in it means another file, or none, on some systems "
        "(devices, names that differ in capitals only); any: it is not.",
    )
    retention: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="How long the archive keeps executions: rules that 'executions retain' carries out, separated "
        "by commas: METHOD=90d, METHOD:FAILED=14d, *=365d.",
    )
    signing_key: Path | None = Field(
        default=None,
        description="The private key, Ed25519 in PEM, that seals are signed with; trusted keys lie beside it in "
        "trusted/. Default: keys/signing.pem in the home folder, where there is one.",
    )
    capture_streams: bool = Field(default=True, description="Whether stdout and stderr are kept in the bundle.")

    @field_validator("environment", "method_types", "retention", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator("time_limit", "archive_timeout", "hook_timeout", mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        if isinstance(value, str):
            with suppress(ValueError, OverflowError):  # pydantic reads ISO 8601, and reports what is neither
                return parse_duration(value, default_seconds=True)
        return value

    @classmethod
    def read(cls) -> Settings:
        """Read the environment; while it stays the same, the same settings are given again.

        Raises:
            SettingsError: If a variable has a value that cannot be used; the message names it.
        """
        # pydantic-settings takes milliseconds, which each run would pay three times.
        return _read(tuple(sorted(item for item in os.environ.items() if item[0].startswith(_PREFIX))))

    @classmethod
    def _read(cls) -> Settings:
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = "EXECUTIONS_" + "_".join(str(step) for step in first["loc"]).upper()
            raise SettingsError(f"{name}: {first['msg']}. Run 'executions doctor' to see all settings.") from error

    @property
    def home_folder(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def workbench_folder(self) -> Path:
        return (self.workbench or self.home_folder / "workbench").expanduser().absolute()

    @property
    def signing_key_file(self) -> Path:
        return (self.signing_key or self.home_folder / "keys" / "signing.pem").expanduser().absolute()

    @property
    def archive_url(self) -> str:
        return self.archive or (self.home_folder / "archive").as_uri()

    @property
    def ledger_url(self) -> str:
        return self.ledger.get_secret_value() or f"sqlite:///{self.home_folder / 'ledger.db'}"


@lru_cache(maxsize=8)
def _read(environment: tuple[tuple[str, str], ...]) -> Settings:  # noqa: ARG001 - the key under which the answer is kept
    return Settings._read()  # noqa: SLF001 - its own module
