"""Secret values: masks them in logs, records, URLs and names of output files.

Two independent rules: `SecretMask` replaces the registered values of a run, in every
form in which programs usually write them. `looks_secret` and `redact_url` recognise
unregistered secrets by their form. `mask_names` renames output files, because their names
appear in manifest, history, events and ledger.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, AnyStr, BinaryIO
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

from prefect_executions.methods.secrets import is_withheld

MASK = "********"

# A shorter value would mask ordinary text.
SHORTEST = 4
# A shorter fragment of base64 or of a key's line occurs in ordinary text.
SHORTEST_PIECE = 12
# A shorter environment variable value occurs in files by chance.
SHORTEST_FOUND = 8
BLOCK = 1 << 20

_CREDENTIAL_PARAMETERS = re.compile(
    r"(x-(amz|goog|oss|cos|ms)-.*|.*(token|secret|signature|passw(or)?d|passphrase|credential|api[-_]?key|jwt).*"
    r"|sig|sas|auth|authorization|key|pwd|pass|code|session|sessionid|awsaccesskeyid|googleaccessid|ossaccesskeyid"
    r"|policy|key-pair-id|access[-_]?key([-_]?id)?)",
    re.IGNORECASE,
)
# The bound on the scheme avoids quadratic time for a long word.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}://[^\s'\"<>`]+")
_WHOLE_URL = re.compile(r"[A-Za-z0-9+.:-]{1,80}://")
_SCP = re.compile(r"(?P<user>[^@/\\:\s]+(:[^@/\s]*)?)@(?P<rest>[^/@:\s]+:.*)")

# A variable with a sure word in its name is always withheld; with a doubtful word, only if its value is not a switch
# or a number.
_SURE_WORDS = frozenset({"PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "SECRETS", "CREDENTIALS", "CREDENTIAL"})
_DOUBTFUL_WORDS = frozenset(
    {"TOKEN", "TOKENS", "KEY", "APIKEY", "AUTH", "AUTHORIZATION", "COOKIE", "JWT", "BEARER", "DSN", "SAS", "PASS"}
)
_HARMLESS = re.compile(r"(true|false|yes|no|on|off|none|auto|[-+]?\d{1,5}(\.\d*)?|)", re.IGNORECASE)
_KNOWN_FORMS = re.compile(
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}"  # JWT
    r"|\b(AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b"  # AWS
    r"|\b(gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|sk-|sk_live_|rk_live_|hf_|pypi-|npm_|pn[ubs]_|dop_v1_)[\w-]{16,}"
    r"|\bAIza[\w-]{30,}"  # Google
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\bBearer +[\w+/=.~-]{8,}"
    r"|\bBasic +(?=\S*([0-9=]|[a-z][A-Z]))[A-Za-z0-9+/]{8,}={0,2}(?![\w-])"  # base64, not "Basic calibration"
)
# Forms that do not match ordinary sentences ("Basic knowledge"), for any file.
_TOKENS = re.compile(
    rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{4,}\.|\b(AKIA|ASIA)[A-Z0-9]{16}\b"
    rb"|\b(gh[pousr]_|github_pat_|glpat-|sk_live_|rk_live_|hf_|pypi-|npm_|dop_v1_)[A-Za-z0-9_]{30,}"
    rb"|\bxox[abeprs]-[0-9A-Za-z-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----\s"
)
_MEMBER = re.compile(r"""(?<![\w.-])([\w.-]++)[\\"']*+[^\S\n]*+[:=](?=\s*+([\\"']*+)([^\s"',)}\]\\]{1,200}+))""")
"""A name and its value in a text, such as ``name=value`` or ``'name': value``; the value may be on the next line.

A value may itself be a member, as in YAML. The limit keeps the time linear.
"""

_NO_VALUES = frozenset({MASK, "None", "True", "False", "null", "true", "false"})
_LONGEST_FORM = 4096
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_ONE_WORD = re.compile(r"[A-Za-z0-9+/=_-]{32,}")
# Some systems refuse a star in a file name.
_MASK_IN_NAMES = "_" * len(MASK)
# Bits per character: English words stay below, 40 random base64 characters have about 4.7.
_ENTROPY = 4.0


class SecretMask:
    """The registered secret values of a run; replaces them before anything is written.

    Each value is recognised as it is, URL-encoded, in base64 and hexadecimal, escaped as in
    JSON, Python and XML, and, if it has several lines, line by line. Values shorter than
    four characters are not registered.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._forms: tuple[bytes, ...] = ()
        self._pattern: re.Pattern[bytes] | None = None
        self._firsts: frozenset[int] = frozenset()
        self.add(*values)

    def add(self, *values: str) -> None:
        """Register *values*; registering a value again changes nothing."""
        with self._lock:
            forms = {form for value in values if len(value) >= SHORTEST for form in _forms(value)}
            if forms <= set(self._forms):
                return
            # Longest first, so that a secret that starts with another secret is replaced completely.
            self._forms = tuple(sorted(forms.union(self._forms), key=lambda form: (-len(form), form)))
            self._firsts = frozenset(form[0] for form in self._forms)
            self._pattern = re.compile(b"|".join(map(re.escape, self._forms)))

    @property
    def size(self) -> int:
        """The number of registered forms, which grows with each new secret."""
        return len(self._forms)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def mask(self, text: AnyStr) -> AnyStr:
        """Return *text* with every registered secret replaced by `MASK`."""
        if not self._forms:
            return text
        if isinstance(text, str):
            return self._replace(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")
        return self._replace(text)

    def mask_inside(self, value: Any) -> Any:
        """Return *value* with every string in it masked, including those in lists, tuples and dictionaries."""
        match value:
            case str():
                return self.mask(value)
            case bytes():
                return self.mask(value)
            case list() | tuple() if not hasattr(value, "_fields"):
                parts = [self.mask_inside(part) for part in value]
                plain: type[list[Any] | tuple[Any, ...]] = list if isinstance(value, list) else tuple
                try:
                    return type(value)(parts)
                except Exception:  # noqa: BLE001 - a subclass whose constructor takes other arguments
                    return plain(parts)
            case dict():
                return {self.mask_inside(name): self.mask_inside(part) for name, part in value.items()}
            case _:
                return value

    def holds(self, data: bytes) -> bool:
        """Whether *data* contains a registered secret."""
        return any(form in data for form in self._forms)

    def stream(self) -> MaskedStream:
        """Return a masker for bytes that arrive in chunks."""
        return MaskedStream(self)

    def found_in(self, source: BinaryIO) -> bool:
        """Whether the rest of *source* contains a registered secret; uses constant memory."""
        forms = self._forms
        if not forms:
            return False
        overlap = len(forms[0]) - 1
        seen = b""
        while block := source.read(BLOCK):
            seen += block
            if any(form in seen for form in forms):
                return True
            seen = seen[-overlap:] if overlap else b""
        return False

    def mask_file(self, path: Path) -> bool:
        """Replace every registered secret in the file at *path*; return whether it contained one.

        The file is rewritten, atomically, only if it contained a secret.
        """
        with path.open("rb") as source:
            if not self.found_in(source):
                return False
            source.seek(0)
            part = path.with_name(path.name + ".part")
            masked = self.stream()
            with part.open("wb") as target:
                while block := source.read(BLOCK):
                    target.write(masked.feed(block))
                target.write(masked.finish())
            part.chmod(path.stat().st_mode & 0o777)
            part.replace(path)
        return True

    def _replace(self, data: bytes) -> bytes:
        pattern = self._pattern
        # Searching each form is several times faster than the pattern, and most text contains no secret.
        if pattern is None or not any(form in data for form in self._forms):
            return data
        return pattern.sub(MASK.encode(), data)

    def next_match(self, data: bytes, start: int) -> re.Match[bytes] | None:
        """Return the first secret in *data* at or after *start*."""
        return self._pattern.search(data, start) if self._pattern else None

    def unfinished(self, data: bytes, start: int) -> int:
        """Return the position in *data* where a secret may start that the end of *data* cuts off."""
        if not self._forms:
            return len(data)
        forms, firsts = self._forms, self._firsts
        for position in range(max(start, len(data) - len(forms[0]) + 1), len(data)):
            if data[position] in firsts:
                tail = data[position:]
                if any(len(form) > len(tail) and form.startswith(tail) for form in forms):
                    return position
        return len(data)


class MaskedStream:
    """Masks bytes in chunks; the joined output equals `SecretMask.mask` of the joined input.

    A possible beginning of a secret is held back until the next chunk.
    """

    def __init__(self, mask: SecretMask) -> None:
        self._mask = mask
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Add a chunk and return the bytes that are final so far."""
        data = self._held + data
        output: list[bytes] = []
        position = 0
        while True:
            limit = self._mask.unfinished(data, position)
            match = self._mask.next_match(data, position)
            if match is None or match.start() >= limit:
                break
            output += (data[position : match.start()], MASK.encode())
            position = match.end()
        self._held = data[limit:]
        return b"".join((*output, data[position:limit]))

    def finish(self) -> bytes:
        """Return the remaining bytes and reset the stream."""
        rest, self._held = self._held, b""
        return self._mask.mask(rest)


def secrets_around(environment: Mapping[str, str]) -> SecretMask:
    """Return a mask of the values in *environment* that look secret, except short ones, which may be common words."""
    return SecretMask(
        value for name, value in environment.items() if len(value) >= SHORTEST_FOUND and looks_secret(name, value)
    )


def reveals(blocks: Iterable[bytes], mask: SecretMask) -> bool:
    """Whether chunks of bytes contain a value registered in *mask*, or a key or token of a well-known form."""
    seen = b""
    for block in blocks:
        seen += block
        if _TOKENS.search(seen) or mask.holds(seen):
            return True
        seen = seen[-_LONGEST_FORM:]
    return False


def names_secret(text: str, names: tuple[str, ...] = ()) -> bool:
    """Whether *text*, such as a settings file, has a member whose name says that its value is secret.

    *names* are the operator's additional names of secrets.
    """
    return any(
        value not in _NO_VALUES and is_withheld(name, value if quoted or not value.isdecimal() else int(value), names)
        for name, quoted, value in _MEMBER.findall(text)
    )


def redact_url(url: str, *, query: bool = True) -> str:
    """Return *url* without user, password and query parameters that grant access; with ``query=False`` without any.

    Chained URLs of fsspec (``zip://a.csv::https://…``) are redacted link by link.
    A plain path, and the user ``git`` of an SSH remote, stay.
    """
    return "::".join(_redact_link(link, query=query) for link in url.split("::"))


def redact_urls(text: str) -> str:
    """Return *text*, such as an error message, with every URL redacted."""
    return _URL.sub(lambda match: redact_url(match.group()), text)


def looks_secret(name: str, value: str) -> bool:
    """Whether the environment variable *name* with this *value* must be withheld.

    Decided by the words of the name (``PASSWORD``, ``TOKEN``, …), by well-known
    forms (JWT, AWS and other providers' keys, private keys, URLs that carry
    credentials) and, for a long word of mixed characters, by its entropy.
    """
    words = frozenset(re.split(r"[^A-Z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).upper()))
    if value and words & _SURE_WORDS:
        return True
    if words & _DOUBTFUL_WORDS and not _HARMLESS.fullmatch(value):
        return True
    return bool(_KNOWN_FORMS.search(value)) or redact_urls(value) != value or _looks_random(value)


def _looks_random(value: str) -> bool:
    if not _ONE_WORD.fullmatch(value) or _UUID.search(value):
        return False
    mixed = any(map(str.isdigit, value)) and any(map(str.isupper, value)) and any(map(str.islower, value))
    counts = Counter(value).values()
    return mixed and -sum(n / len(value) * math.log2(n / len(value)) for n in counts) >= _ENTROPY


def _redact_link(url: str, *, query: bool) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scp = _SCP.fullmatch(url)
        return url if scp is None or scp["user"] == "git" else scp["rest"]
    rest, hash_sign, fragment = rest.partition("#")
    rest, question_mark, parameters = rest.partition("?")
    if not query:
        return f"{scheme}://{_without_user(scheme, rest)}"
    kept = _kept_parameters(parameters)
    kept_fragment = _kept_parameters(fragment) if "=" in fragment else fragment
    return (
        f"{scheme}://{_without_user(scheme, rest)}"
        + (question_mark + kept if kept else "")
        + (hash_sign + kept_fragment if kept_fragment else "")
    )


def _without_user(scheme: str, rest: str) -> str:
    authority, slash, path = rest.partition("/")
    user, _, host = authority.rpartition("@")
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else ""
    if port and not port.isdigit() and "@" in path:
        # A key with a slash (AWS creates such keys) hides the end of the user name from a URL parser.
        return rest.rpartition("@")[2]
    keep = "git@" if user == "git" and "ssh" in scheme else ""
    return keep + host + slash + path


def _kept_parameters(query: str) -> str:
    return "&".join(part for part in query.split("&") if not _grants_access(part))


def _grants_access(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return bool(_CREDENTIAL_PARAMETERS.fullmatch(unquote_plus(name)) or _KNOWN_FORMS.search(unquote_plus(value)))


def _forms(value: str) -> Iterator[bytes]:
    for text in (value, *_long_lines(value)):
        raw = text.encode("utf-8", "surrogatepass")
        for written in _escaped(text):
            yield written.encode("utf-8", "surrogatepass")
        yield from (raw.hex().encode(), raw.hex().upper().encode())
        for percent in (quote(raw, safe=""), quote(raw, safe="/"), quote_plus(raw)):
            yield percent.encode()
            yield re.sub(r"%..", lambda match: match.group().lower(), percent).encode()
        yield from _base64_forms(raw)


def _long_lines(value: str) -> list[str]:
    lines = value.splitlines()
    # The header and footer of a PEM key are not secret.
    return [line for line in lines if len(line) >= SHORTEST_PIECE and "-----" not in line] if len(lines) > 1 else []


def _escaped(text: str) -> Iterator[str]:
    yield text
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield repr(text)[1:-1]
    yield html.escape(text)
    yield html.escape(text, quote=False)


def _base64_forms(raw: bytes) -> Iterator[bytes]:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(raw)
    wrapped = base64.encodebytes(raw).rstrip(b"\n")
    yield from (wrapped, wrapped.replace(b"\n", b"\\n"))
    # Inside a longer text (user:password) the value starts at any of the three positions in a base64 group.
    for offset in range(3):
        first = -(-offset * 8 // 6)
        last = (offset + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            piece = encode(bytes(offset) + raw)[first:last]
            if len(piece) >= SHORTEST_PIECE:
                yield piece


def mask_credentials(text: str, mask: SecretMask) -> None:
    """Register in *mask* the credentials in *text*: in its URLs, and keys of a well-known form."""
    for match in _KNOWN_FORMS.finditer(text):
        key = match.group()
        mask.add(*([text] if key.startswith("-----") else [key, key.split()[-1]]))
    urls = {match.group() for match in _URL.finditer(text)}
    # A URL may have a space in its path, and an fsspec URL a chain before it.
    for url in urls | {text} if _WHOLE_URL.match(text) else urls:
        if redact_url(url) != url:
            mask.add(url, *_credentials(url))


def _credentials(url: str) -> Iterator[str]:
    for link in url.split("::"):
        with suppress(ValueError):  # brackets without an address
            parts = urlsplit(link)
            if parts.password:
                yield from (parts.password, unquote(parts.password))
            granting = [part for part in f"{parts.query}&{parts.fragment}".split("&") if _grants_access(part)]
            # A short value is more often a word (`code=utf8`) than a key.
            yield from (value for part in granting if len(value := part.partition("=")[2]) >= SHORTEST_PIECE)


def mask_names(folder: Path, mask: SecretMask) -> tuple[str, ...]:
    """Rename files and folders below *folder* whose names contain a registered secret; return the new relative names.

    No file is overwritten: if the new name is taken, a number is appended. Idempotent.

    Raises:
        OSError: If an entry cannot be renamed.
    """
    renamed: list[str] = []
    # Bottom-up: a secret may contain a slash, and so span the names of a folder and its file.
    for path, folders, files in os.walk(folder, topdown=False) if mask else ():
        for name in (*files, *folders):
            entry = Path(path, name)
            relative = entry.relative_to(folder).as_posix()
            clean = mask.mask(relative)
            if clean != relative:
                renamed += _move(entry, folder / masked_name(relative, mask), folder)
    return tuple(sorted(renamed))


def masked_name(name: str, mask: SecretMask) -> str:
    """Return the file name or path *name* with underscores in place of registered secrets."""
    clean = mask.mask(name)
    return name if clean == name else clean.replace(MASK, _MASK_IN_NAMES)


def free_path(target: Path) -> Path:
    """Return *target*, with a number before its suffix if it exists."""
    free, number = target, 1
    while os.path.lexists(free):
        number += 1
        free = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return free


def _move(source: Path, target: Path, folder: Path) -> list[str]:
    if source.is_dir() and not source.is_symlink():
        target.mkdir(parents=True, exist_ok=True)
        _remove_empty(source, folder)
        return []
    if not os.path.lexists(source):  # an emptied folder that was removed
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    free = free_path(target)
    source.rename(free)
    _remove_empty(source.parent, folder)
    return [free.relative_to(folder).as_posix()]


def _remove_empty(folder: Path, top: Path) -> None:
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
