"""Settings: environment variables, read once at an entry point and passed down as a value."""

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
    """Which data of an execution is archived; its record always is."""

    FULL = "full"
    """The record, the staged inputs and the outputs."""
    OUTPUTS = "outputs"
    """The record and the outputs; inputs are recorded by reference and digest."""
    NONE = "none"
    """The record only."""


class DirtyTree(StrEnum):
    """What to do when the Method's repository has uncommitted changes."""

    RECORD = "record"
    REFUSE = "refuse"


class ImportNames(StrEnum):
    """Which file names an imported bundle may have."""

    PORTABLE = "portable"
    """Names that every operating system accepts and keeps distinct."""
    ANY = "any"
    """Names that this operating system accepts."""


class SignatureRule(StrEnum):
    """What to do with an unsigned bundle."""

    IGNORE = "ignore"
    NOTE = "note"
    REQUIRE = "require"


class Settings(BaseSettings):
    """The operator's settings, from environment variables with the prefix ``EXECUTIONS_``."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")

    home: Path = Field(
        default=Path("~/.executions"),
        description="The home folder: archive, workbench, ledger and keys are in it by default.",
    )
    archive: str = Field(
        default="",
        description="Where sealed bundles are stored: a folder, any fsspec URL (s3://bucket/prefix), or "
        "block:NAME for a Prefect RemoteFileSystem block. Default: archive in the home folder.",
    )
    workbench: Path | None = Field(
        default=None, description="The folder for open bundles. Default: workbench in the home folder."
    )
    ledger: SecretStr = Field(
        default=SecretStr(""),
        description="The index: sqlite:///file or postgresql://user:password@host/name. "
        "Default: ledger.db in the home folder.",
    )
    archive_level: ArchiveLevel = Field(
        default=ArchiveLevel.FULL,
        description="The default archive level of Methods: full, outputs or none.",
    )
    input_limit: int = Field(
        default=1024**3,
        ge=0,
        description="The largest staged input to keep, in bytes. A larger input is recorded by reference and digest.",
    )
    environment: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Additional environment variables to record: names, separated by commas."
    )
    secret_names: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Additional names of inputs, dictionary keys, params and environment variables whose values are "
        "withheld, separated by commas.",
    )
    method_types: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Additional terms for the type of a Method, separated by commas."
    )
    dirty: DirtyTree = Field(
        default=DirtyTree.RECORD,
        description="record or refuse: what to do if the repository has uncommitted changes.",
    )
    diff_limit: int = Field(default=1024**2, ge=0, description="The largest uncommitted diff to record, in bytes.")
    code_commit: str = Field(
        default="",
        description="The commit of the code, if its repository is not available, as in a container.",
    )
    image: str = Field(
        default="", description="The container image of the run, which a container cannot detect itself."
    )
    image_digest: str = Field(default="", description="The digest of the container image of the run, as sha256:HEX.")
    agent: str = Field(
        default="", description="The requester of executions that have no token: a name, e-mail or ORCID URL."
    )
    runtime: str = Field(
        default="process", description="The runtime of descriptor Methods' scripts: process, docker or kubernetes."
    )
    runtime_image: str = Field(
        default="", description="The container image of descriptor Methods that do not name one."
    )
    runtime_network: str = Field(
        default="", description="The Docker network of descriptor Methods' scripts, or host. Default: bridge."
    )
    cpus: float | None = Field(
        default=None,
        gt=0,
        description="The CPU limit of each replica of a descriptor Method; 'executions submit --cpus' overrides it. "
        "A run is refused if its runtime cannot enforce the limit.",
    )
    memory: int | None = Field(
        default=None, gt=0, description="The memory limit of each replica of a descriptor Method, in bytes."
    )
    gpus: int | None = Field(
        default=None, gt=0, description="The number of GPUs of each replica of a descriptor Method."
    )
    time_limit: timedelta | None = Field(
        default=None,
        description="How long a Method's code may run, in seconds. A shorter limit of the Method takes precedence.",
    )
    archive_timeout: timedelta = Field(
        default=timedelta(minutes=10),
        description="How long to retry one upload, in seconds, before it is left pending.",
    )
    hook_timeout: timedelta = Field(
        default=timedelta(seconds=20),
        description="How long a state hook and its follow-up work may take, in seconds; settle does the rest.",
    )
    import_limit: int = Field(
        default=20 * 1024**3, ge=0, description="The largest unpacked size of one import, in bytes."
    )
    import_entries: int = Field(
        default=500_000, ge=1, description="The largest number of files, and of folders, in one import."
    )
    import_names: ImportNames = Field(
        default=ImportNames.PORTABLE,
        description="portable: refuse an import with a file name that some operating systems do not accept or do not "
        "keep distinct (devices, names that differ only in case). any: accept it.",
    )
    retention: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="How long the archive keeps executions: rules for 'executions retain', separated by commas: "
        "METHOD=90d, METHOD:FAILED=14d, *=365d.",
    )
    server_idle: timedelta = Field(
        default=timedelta(minutes=10),
        ge=timedelta(0),
        description="How long the local Prefect server stays up after its last use, in seconds. Commands start it if "
        "no API is configured, and share it. 0: each command starts a server of its own and stops it.",
    )
    signing_key: Path | None = Field(
        default=None,
        description="The private key that signs seals: Ed25519 in PEM. Trusted keys are in trusted/ beside it. "
        "Default: keys/signing.pem in the home folder, if it exists.",
    )
    signatures: SignatureRule = Field(
        default=SignatureRule.NOTE,
        description="What to do with an unsigned bundle that is verified, imported, replayed, audited or shared: "
        "ignore, note or require (refuse it). A wrong signature is always refused.",
    )
    capture_streams: bool = Field(default=True, description="Whether stdout and stderr are recorded in the bundle.")

    @field_validator("environment", "secret_names", "method_types", "retention", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator("time_limit", "archive_timeout", "hook_timeout", "server_idle", mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        if isinstance(value, str):
            with suppress(ValueError, OverflowError):  # pydantic parses ISO 8601 and reports anything else
                return parse_duration(value, default_seconds=True)
        return value

    @classmethod
    def read(cls) -> Settings:
        """Read the environment; the result is cached until a variable changes.

        Raises:
            SettingsError: If a variable has an invalid value; the message names it.
        """
        # pydantic-settings takes milliseconds, and each run reads its settings three times.
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
    def local_folders(self) -> tuple[Path, ...]:
        """The folders in which this package and Prefect keep their own files."""
        place = self.archive_url.removeprefix("file://")
        archive = () if ":" in place else (Path(place),)
        prefect = Path(os.environ.get("PREFECT_HOME") or "~/.prefect")
        seals = [file.parent for file in (self.local_seals_file,) if file]
        folders = (self.home_folder, self.workbench_folder, *archive, self.signing_key_file.parent, *seals, prefect)
        return tuple(folder.expanduser().absolute() for folder in folders)

    @property
    def signing_key_file(self) -> Path:
        return (self.signing_key or self.home_folder / "keys" / "signing.pem").expanduser().absolute()

    @property
    def server_folder(self) -> Path:
        """The files of the local Prefect server: address, password, log."""
        return self.workbench_folder / ".server"

    @property
    def local_seals_file(self) -> Path | None:
        """The list of bundles that this user sealed here, in the user's state folder (XDG Base Directory)."""
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not state.is_absolute():
            try:
                state = Path.home() / ".local" / "state"
            except RuntimeError:  # a user without a home folder, as in some containers
                return None
        return state / "prefect-executions" / "sealed"

    @property
    def archive_url(self) -> str:
        return self.archive or (self.home_folder / "archive").as_uri()

    @property
    def ledger_url(self) -> str:
        return self.ledger.get_secret_value() or f"sqlite:///{self.home_folder / 'ledger.db'}"


@lru_cache(maxsize=8)
def _read(environment: tuple[tuple[str, str], ...]) -> Settings:  # noqa: ARG001 - the cache key
    return Settings._read()  # noqa: SLF001 - its own module
