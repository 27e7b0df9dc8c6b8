"""Secrets: masked in every form that programs write, in pieces too, and judged by form where nobody registered them."""

from __future__ import annotations

import base64
import json
import re
import stat
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_executions.capture.secrets import (
    MASK,
    SecretMask,
    looks_secret,
    mask_credentials,
    redact_url,
    redact_urls,
)

SECRET = 's3cr3t/Value+with=signs"&é'
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.4pcPyMD09olPSyXnrXCjTwXyr4BsezdI1AVTmud2fU4"


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        re.sub("%..", lambda match: match.group().lower(), quote(SECRET, safe="")),
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        repr(SECRET),
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        SECRET.replace("&", "&amp;").replace('"', "&quot;"),
    ],
)
def test_a_secret_is_masked_in_every_form_that_programs_write(written):
    masked = SecretMask([SECRET]).mask(f"before {written} after")
    assert MASK in masked
    assert written not in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")


@pytest.mark.parametrize("user", ["", "a", "ab", "abc", "ada:"])
def test_a_secret_inside_a_longer_text_in_base64_is_masked(user):
    encoded = base64.b64encode(f"{user}{SECRET}".encode()).decode()
    masked = SecretMask([SECRET]).mask(f"Authorization: Basic {encoded}")
    assert MASK in masked
    assert base64.b64encode(SECRET.encode())[4:-6].decode() not in masked


def test_base64_that_is_wrapped_into_lines_is_masked():
    long = TOKEN * 2
    encoded = base64.encodebytes(long.encode()).decode()
    assert SecretMask([long]).mask(encoded).strip() == MASK


def test_a_secret_of_several_lines_is_masked_line_by_line_but_not_its_frame():
    body = "MIIEvQIBADANBgkqhkiG9w0BAQEF\nAASCBKcwggSjAgEAAoIBAQC7VJTU"
    key = f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----"
    masked = SecretMask([key]).mask("line AASCBKcwggSjAgEAAoIBAQC7VJTU; -----BEGIN PRIVATE KEY-----")
    assert masked == f"line {MASK}; -----BEGIN PRIVATE KEY-----"


def test_values_of_fewer_than_four_characters_are_not_registered():
    mask = SecretMask(["abc", ""])
    assert not mask
    assert mask.mask("abc") == "abc"


def test_of_two_secrets_that_begin_alike_the_longer_one_is_replaced_whole():
    assert SecretMask(["pass", "password"]).mask("password pass") == f"{MASK} {MASK}"


def test_a_secret_that_is_registered_later_is_masked_from_then_on():
    mask = SecretMask()
    stream = mask.stream()
    assert stream.feed(b"hunter2 ") == b"hunter2 "
    mask.add("hunter2")
    mask.add("hunter2")
    assert stream.feed(b"hunter2 ") == MASK.encode() + b" "


def test_text_that_is_no_utf8_passes_unchanged():
    mask = SecretMask(["hunter2"])
    assert mask.mask("\udcff\ud800 hunter2") == f"\udcff\ud800 {MASK}"
    assert mask.mask(b"\xff\xfe hunter2") == b"\xff\xfe " + MASK.encode()


_pieces = st.lists(
    st.sampled_from(["abab", "ab", "aba", "abc", "abcab", "bcabc", "x", "\n", "é", "%C3%A9ab"]), max_size=12
)


@given(
    secrets=st.lists(
        st.sampled_from(["abab", "ababc", "babx", "éab\n", "abcabcab"]) | st.text(min_size=4, max_size=8), max_size=4
    ),
    pieces=_pieces,
    size=st.integers(1, 7),
)
def test_pieces_masked_one_by_one_are_what_the_whole_masked_at_once_is(secrets, pieces, size):
    mask = SecretMask(secrets)
    whole = "".join(pieces).encode()
    stream = mask.stream()
    parts = [stream.feed(whole[start : start + size]) for start in range(0, len(whole), size)]
    assert b"".join([*parts, stream.finish()]) == mask.mask(whole)


@given(secret=st.text(min_size=4, max_size=40), before=st.text(max_size=10), cut=st.integers(0, 60))
def test_no_cut_lets_a_secret_through(secret, before, cut):
    stream = SecretMask([secret]).stream()
    data = (before + secret + before).encode()
    out = stream.feed(data[:cut]) + stream.feed(data[cut:]) + stream.finish()
    assert SecretMask([secret]).mask(data) == out
    if not set(secret) & set(MASK) and secret not in before + MASK + before:
        assert secret.encode() not in out


def test_a_stream_holds_no_more_than_may_begin_a_secret():
    stream = SecretMask(["hunter2"]).stream()
    assert stream.feed(b"line\nhun") == b"line\n"
    assert stream.feed(b"ger\n") == b"hunger\n"


def test_a_file_with_a_secret_is_written_anew_and_one_without_is_not_touched(tmp_path):
    log = tmp_path / "stdout.log"
    log.write_bytes(b"x" * (1 << 20) + b"hunter2" + b"y" * 10)
    log.chmod(0o640)
    mask = SecretMask(["hunter2"])
    assert mask.mask_file(log)
    assert log.read_bytes() == b"x" * (1 << 20) + MASK.encode() + b"y" * 10
    assert stat.S_IMODE(log.stat().st_mode) == 0o640
    before = log.stat()
    assert not mask.mask_file(log)
    assert log.stat().st_ino == before.st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["stdout.log"]


def test_a_secret_across_the_blocks_of_a_file_is_found(tmp_path):
    log = tmp_path / "stdout.log"
    log.write_bytes(b"x" * ((1 << 20) - 3) + b"hunter2")
    assert SecretMask(["hunter2"]).mask_file(log)
    assert b"hunter" not in log.read_bytes()


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("https://ada:pw@host/a.csv", "https://host/a.csv"),
        ("https://ghp_0123456789abcdef@github.com/org/repo.git", "https://github.com/org/repo.git"),
        ("ssh://git@host:22/repo", "ssh://git@host:22/repo"),
        ("ssh://git:pw@host/repo", "ssh://host/repo"),
        ("git@github.com:org/repo.git", "git@github.com:org/repo.git"),
        ("oauth2:glpat-abc@gitlab.com:org/repo.git", "gitlab.com:org/repo.git"),
        ("https://b.s3/x?X-Amz-Signature=1&X-Amz-Credential=2&versionId=7", "https://b.s3/x?versionId=7"),
        ("https://a.blob/x?sv=2020&sig=abc%3D", "https://a.blob/x?sv=2020"),
        ("https://host/x?access_token=1", "https://host/x"),
        ("https://host/x?page=2#access_token=1", "https://host/x?page=2"),
        ("https://host/x?q=" + TOKEN, "https://host/x"),
        ("s3://AKIA0:wJal/rXUt@bucket/key", "s3://bucket/key"),
        ("zip://a.csv::https://ada:pw@host/z.zip", "zip://a.csv::https://host/z.zip"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("https://host/@scope/package", "https://host/@scope/package"),
        ("data/a?token=b.csv", "data/a?token=b.csv"),
        ("s3://bucket/key", "s3://bucket/key"),
    ],
)
def test_a_url_is_told_without_what_grants_access(url, redacted):
    assert redact_url(url) == redacted


def test_a_url_is_redacted_without_its_query_on_request():
    assert redact_url("ftp://user:pass@host/path?page=2#y", query=False) == "ftp://host/path"


def test_a_long_word_is_looked_through_in_no_time():
    for word in ("x" * 10**6, "https" * 10**5):  # it took minutes
        assert redact_urls(f"{word}://user:password@host/") == f"{word}://host/"


def test_urls_inside_a_message_are_redacted():
    assert redact_urls("404 for 'https://a:b@host/x', sorry") == "404 for 'https://host/x', sorry"


@given(st.text())
def test_redaction_takes_any_text(text):
    assert redact_url(redact_url(text)) == redact_url(redact_url(redact_url(text)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_TOKEN", "abc-def-ghi"),
        ("apiKey", "abcdefgh"),
        ("DB_PASSWORD", "1"),
        ("ANYTHING", TOKEN),
        ("ANYTHING", "AKIAIOSFODNN7EXAMPLE"),
        ("ANYTHING", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1"),
        ("ANYTHING", "postgresql://ada:pw@host/db"),
        ("ANYTHING", "https://host/x?sig=abc"),
        ("ANYTHING", "-----BEGIN RSA PRIVATE KEY-----"),
        ("HEADER", "Bearer abcdefghijkl"),
        ("HEADER", "Authorization: Basic YWRhOnBhc3N3b3Jk"),
    ],
)
def test_a_variable_that_looks_secret_is_recognised(name, value):
    assert looks_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LANG", "en_US.UTF-8"),
        ("OMP_NUM_THREADS", "8"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("MAX_TOKENS", "4096"),
        ("PWD", "/data/some/folder"),
        ("KEYBOARD", "de"),
        ("SLURM_JOB_ID", "123456"),
        ("IMAGE_DIGEST", "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
        ("PATH", "/usr/local/bin:/usr/bin"),
        ("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"),
        ("MODE", "Basic calibration"),
        ("MODE", "Basic Task-oriented reconstruction"),
    ],
)
def test_an_innocent_variable_is_told(name, value):
    assert not looks_secret(name, value)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("https://ada:pass-word@host/x", "the password is pass-word"),
        ("https://ada:p%40ss-word@host/x", "p@ss-word p%40ss-word"),
        ("simplecache::s3://key:wJalrXUtnFEMI@bucket/x", "wJalrXUtnFEMI"),
        ("https://host/x?sv=1&sig=AbCdEf012345%3D", "GET /x?sv=1&sig=AbCdEf012345%3D"),
        ("look at https://ada:pass-word@host/x first", "https://ada:pass-word@host/x"),
        (f"key {TOKEN}", TOKEN),
        ("Bearer abcdefghijkl", "abcdefghijkl"),
    ],
)
def test_what_grants_access_is_masked_alone_too(text, printed):
    mask = SecretMask()
    mask_credentials(text, mask)
    assert mask
    for secret in ("pass-word", "p@ss-word", "wJalrXUtnFEMI", "AbCdEf012345", TOKEN, "abcdefghijkl"):
        assert secret not in mask.mask(printed)


@pytest.mark.parametrize("text", ["https://host/x?code=utf8", "a path with: and //", "s3://bucket/key", "https://[x/y"])
def test_what_grants_no_access_masks_nothing_of_a_word(text):
    mask = SecretMask()
    mask_credentials(text, mask)
    assert mask.mask("utf8 host bucket key x y") == "utf8 host bucket key x y"


@given(st.text())
def test_credentials_are_looked_for_in_any_text(text):
    mask_credentials(text, SecretMask())
