"""Names of outputs: no secret in them, and no file lost for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_executions.capture.secrets import SecretMask, mask_names

SECRET = "half/other-half+x=="


def files(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_a_secret_in_a_name_is_masked_also_where_it_makes_a_folder(tmp_path):
    write(tmp_path, f"of-{SECRET}.txt", "1")
    write(tmp_path, "plots/a.png", "2")

    assert mask_names(tmp_path, SecretMask([SECRET])) == ("of-________.txt",)
    assert files(tmp_path) == {"of-________.txt": "1", "plots/a.png": "2"}
    assert not (tmp_path / "of-half").exists()


def test_two_files_that_differ_in_their_secrets_are_both_kept(tmp_path):
    for name in ("x-alpha.csv", "x-bravo.csv", "x-________.csv"):
        write(tmp_path, name, name)

    told = mask_names(tmp_path, SecretMask(["alpha", "bravo"]))
    assert told == ("x-________-2.csv", "x-________-3.csv")
    assert sorted(files(tmp_path).values()) == ["x-________.csv", "x-alpha.csv", "x-bravo.csv"]


def test_a_folder_is_masked_with_what_lies_in_it_and_when_it_is_empty(tmp_path):
    write(tmp_path, "for-alpha/deep/a.txt", "1")
    (tmp_path / "none-alpha").mkdir()

    mask_names(tmp_path, SecretMask(["alpha"]))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "for-________",
        "for-________/deep",
        "for-________/deep/a.txt",
        "none-________",
    ]


@pytest.mark.parametrize("mask", [SecretMask(), SecretMask(["alpha"])])
def test_done_again_or_without_a_secret_nothing_changes(tmp_path, mask):
    write(tmp_path, "for-alpha.txt", "1")
    mask_names(tmp_path, mask)
    before = files(tmp_path)

    assert mask_names(tmp_path, mask) == ()
    assert files(tmp_path) == before


def test_a_link_is_renamed_and_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    write(tmp_path, "outside/alpha.txt", "1")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/alpha").symlink_to(tmp_path / "outside")

    assert mask_names(tmp_path / "inside", SecretMask(["alpha"])) == ("________",)
    assert (tmp_path / "inside/________").is_symlink()
    assert (tmp_path / "outside/alpha.txt").exists()
