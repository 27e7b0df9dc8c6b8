"""Data files beside the code are kept if they are small and harmless; the others are listed with the reason."""

from __future__ import annotations

import time

import pytest

from prefect_executions.capture.data_files import LARGEST, data_files
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.flow.recorded_code import _reveals

SECRET_NAMES = [
    ".env",
    ".env.local",
    "prod.env",
    ".netrc",
    "_netrc",
    ".pgpass",
    ".npmrc",
    ".pypirc",
    ".git-credentials",
    "id_rsa",
    "id_ed25519.pub",
    "server.pem",
    "tls.key",
    "store.p12",
    "keys.jks",
    "wallet.kdbx",
    "secret.txt",
    "secrets.json",
    "client_secret_1.json",
    "credentials.csv",
    "my-credentials",
    "aws_credentials.ini",
    "password.txt",
    "passwords",
    "tokens.json",
    "github_token",
    "api_key.txt",
    "apikey.json",
    "service-account.json",
    "auth.json",
    "key.txt",
    "private_key.txt",
]
HARMLESS_NAMES = [
    "data.csv",
    "config.json",
    "tokenizer.json",
    "monkeys.csv",
    "author.txt",
    "environment.yml",
    "keyboard.csv",
    "secretary.txt",
    "model.npy",
    "README",
    "compass.json",
]


def judged(folder, *names: str, **options):
    """Return the kept content or the reason for each of *names*."""
    found = data_files(
        [str(folder / name) for name in names],
        **{
            "top": str(folder),
            "folders": [str(folder)],
            "outside": {},
            "apart": (),
            "known": (),
            "before": time.time_ns() + 10**9,
            "tracked": None,
            "secret": lambda _path, content: b"SECRET" in content,
            "limit": 2**23,
            **options,
        },
    )
    return {file.path: file.why_missing or file.content for file in found}


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_a_small_file_beside_the_code_is_kept(tmp_path, name):
    (tmp_path / name).write_bytes(b"data")
    assert judged(tmp_path, name) == {name: b"data"}


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_file_whose_name_may_stand_for_credentials_is_never_kept(tmp_path, name):
    (tmp_path / name).write_bytes(b"data")
    assert judged(tmp_path, name, tracked=lambda _: True) == {name: "its name says that it may hold credentials"}


def test_a_file_in_a_folder_of_credentials_is_never_kept(tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/a.txt").write_bytes(b"data")
    assert "credentials" in judged(tmp_path, "secrets/a.txt")["secrets/a.txt"]


def test_a_file_with_a_secret_inside_is_never_kept(tmp_path):
    (tmp_path / "config.json").write_bytes(b"SECRET")
    assert judged(tmp_path, "config.json") == {"config.json": "it may hold credentials"}


def test_a_large_file_is_listed(tmp_path):
    (tmp_path / "large.bin").write_bytes(b"x" * (LARGEST + 1))
    (tmp_path / "just.bin").write_bytes(b"x" * LARGEST)
    result = judged(tmp_path, "large.bin", "just.bin")
    assert result["large.bin"] == "it has 1048577 bytes, more than 1048576"
    assert len(result["just.bin"]) == LARGEST


def test_a_file_that_the_run_has_made_does_not_count(tmp_path):
    before = time.time_ns() - 10**9
    (tmp_path / "made.txt").write_bytes(b"data")
    assert judged(tmp_path, "made.txt", before=before) == {}


def test_in_git_only_tracked_files_are_kept(tmp_path):
    for name in ("tracked", "untracked"):
        (tmp_path / name).write_bytes(b"data")
    tracked = str(tmp_path / "tracked")
    assert judged(tmp_path, "tracked", "untracked", tracked=lambda path: path == tracked) == {
        "tracked": b"data",
        "untracked": "Git does not track it",
    }


def test_other_files_do_not_count(tmp_path):
    (tmp_path / "code/.hidden").mkdir(parents=True)
    (tmp_path / "inputs").mkdir()
    for name in ("outside", "code/.hidden/x", "code/known.py", "code/input.txt", "inputs/y"):
        (tmp_path / name).write_bytes(b"data")
    names = ("outside", "code/.hidden/x", "code/known.py", "code/input.txt", "inputs/y", "code", "code/gone")
    options = {
        "folders": [str(tmp_path / "code"), str(tmp_path / "inputs")],
        "known": {str(tmp_path / "code/known.py")},
        "apart": [str(tmp_path / "code/input.txt"), str(tmp_path / "inputs")],
    }
    assert judged(tmp_path, *names, **options) == {}


def test_all_kept_files_together_have_at_most_the_limit(tmp_path):
    for name, size in (("a.bin", 600), ("b.bin", 600), ("c.bin", 300)):
        (tmp_path / name).write_bytes(b"x" * size)
    found = judged(tmp_path, "a.bin", "b.bin", "c.bin", limit=1000)
    assert found == {"a.bin": b"x" * 600, "b.bin": "the data files together are too large", "c.bin": b"x" * 300}


@pytest.mark.parametrize(
    ("content", "revealing"),
    [
        ("db_password: hunter2hunter2\n", True),
        ('{\n  "api_key": "0123456789"\n}', True),
        ("[db]\nurl = postgresql://svc:pw12345@db/x\n", True),
        ("my_own = abc\n", True),
        ("db:\n  password: hunter2\n", True),
        ("password:\n  hunter2\n", True),
        ('{"user": "ada", "password": "hunter2hunter2"}', True),
        ("password: null\npassword_hash: true\n", False),
        ("max_tokens: 100\ntokenizer: bpe\nkeyword=x\n", False),
        ("password: env:DB\n", False),
        ("text,area\na,1.5\n", False),
    ],
)
def test_a_data_file_with_a_secret_name_or_credentials_in_a_url_is_not_kept(content, revealing):
    assert _reveals(SecretMask(), ("my_own",), "code/settings.json", content.encode()) is revealing


def test_source_files_have_variables_with_secret_names():
    source = b"def connect(password: str) -> None:\n    token = login(password)\n"
    assert not _reveals(SecretMask(), (), "code/_outside/site-packages/made/__init__.py", source)
    assert _reveals(SecretMask(), (), "code/settings.ini", b"password = hunter2hunter2\n")
    known = SecretMask()
    known.add("hunter2hunter2")
    assert _reveals(known, (), "code/made.py", b"password = 'hunter2hunter2'\n")


@pytest.mark.parametrize(
    "content", [b",,,,\n" * 100_000, b"\x00\x01\n" * 200_000, b"a\n" * 200_000, b" " * 500_000, b"a=" * 250_000]
)
def test_a_large_file_without_secrets_is_judged_in_linear_time(content):
    assert _reveals(SecretMask(), (), "code/data.bin", content) is False


def test_a_file_below_a_folder_of_another_project_has_the_path_of_that_folder(tmp_path):
    for name in ("mine/a.txt", "library/pkg/data/b.txt", "library/other.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"data")
    places = {
        "top": str(tmp_path / "mine"),
        "folders": [str(tmp_path / "mine")],
        "tracked": lambda path: "mine" in path,
    }
    outside = {str(tmp_path / "library/pkg"): "_outside/library/pkg"}
    found = judged(tmp_path, "mine/a.txt", "library/pkg/data/b.txt", "library/other.txt", outside=outside, **places)
    assert found == {"a.txt": b"data", "_outside/library/pkg/data/b.txt": b"data"}
