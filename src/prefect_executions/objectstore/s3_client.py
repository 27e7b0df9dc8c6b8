"""One S3 bucket spoken to through s3fs: each request is tried with patience and fails with one kind of error.

s3fs and botocore have a retry loop each; multiplied, a server that says SlowDown
for ever gets 25 requests in 39 s, and a silent one holds the caller for 115 s
(measured). Both are switched off, and the one here has one time limit.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from aiohttp import ClientError as TransportError
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    HTTPClientError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]
from s3fs import S3FileSystem  # type: ignore[import-untyped]

from prefect_executions.errors import ArchiveError
from prefect_executions.objectstore.interface import RetryBudget

CONNECTIONS = 16
_CONNECT_SECONDS = 5
_READ_SECONDS = 20

_PASSING_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Faults of the transport that S3 tells with status 400, and what some servers tell with none.
_PASSING_CODES = frozenset({"RequestTimeout", "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody", "SlowDown"})
_FAULTS = (OSError, BotoCoreError, ClientError, TransportError, ResponseParserError, TimeoutError)

MISSING = frozenset({"NoSuchKey", "404"})
"""How S3 says that there is no such object; HEAD has no body and so no code but the status."""


class RefusedError(Exception):
    """The server refused a request with a code that the caller can deal with.

    It may be the echo of an attempt that did its work and whose reply was lost.
    """

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


class S3Fault(NamedTuple):
    """Why a request failed: S3's code where it gave one, words, and whether trying again can help."""

    code: str
    words: str
    passing: bool


class Reply(NamedTuple):
    """What a request brought: the members of the reply, and the body where it was asked for."""

    members: Mapping[str, Any]
    body: bytes


class Bucket:
    """A bucket for the coroutines of one call of the store, which share its time limit.

    Args:
        filesystem: s3fs, in whose event loop the coroutines run.
        name: The bucket's name.
        patience: The time that is left.
        hidden: Words that no message may repeat.
    """

    def __init__(self, filesystem: S3FileSystem, name: str, patience: RetryBudget, hidden: frozenset[str]) -> None:
        self._filesystem = filesystem
        self._name = name
        self._patience = patience
        self._hidden = hidden
        self._asked = "nothing"
        self._last: S3Fault | None = None

    async def ask(
        self,
        method: str,
        key: str,
        request: Mapping[str, Any],
        *,
        allowed: frozenset[str] = frozenset(),
        body: bool = False,
    ) -> Reply:
        """Send one *request* about *key*, again while its failures pass, and return the reply, with its body if *body*.

        Raises:
            RefusedError: If the server answers with one of the *allowed* codes.
            ArchiveError: If it fails for good or the time is over.
        """
        part = f", part {request['PartNumber']}," if "PartNumber" in request else ""
        what = self._asked = f"{method} of {key}{part}"
        attempt = 0
        while True:
            attempt += 1
            try:
                # `call_s3` is its form for threads, this the one for coroutines. It leaves out what the method has not.
                members = await self._filesystem._call_s3(method, request, Bucket=self._name, Key=key)  # noqa: SLF001
                return Reply(members, await _whole(members["Body"]) if body else b"")
            except _FAULTS as error:
                fault = self._last = understood(error)
                if fault.code in allowed:
                    raise RefusedError(fault.code) from None
                pause = self._patience.pause(attempt) if fault.passing else None
                if pause is None:
                    self._fail(what, fault, error, attempt)
            await asyncio.sleep(pause)

    async def presign(self, key: str, seconds: int) -> str:
        """Return a URL that reads *key* for that many seconds; nothing is asked of the server."""
        try:
            client = await self._filesystem.set_session()
            of = {"Bucket": self._name, "Key": key}
            return str(await client.generate_presigned_url("get_object", Params=of, ExpiresIn=seconds))
        except _FAULTS as error:
            self._fail(f"presign of {key}", understood(error), error, 1)

    def time_is_over(self) -> ArchiveError:
        """Return the error for a call that its time limit ended."""
        last = f"; the last failure was {self._public(self._last.words)}" if self._last else ""
        return ArchiveError(f"s3://{self._name}: {self._asked} not done within {self._patience.limit:g} s{last}")

    def _fail(self, what: str, fault: S3Fault, error: Exception, attempt: int) -> NoReturn:
        words = self._public(fault.words)
        tried = "" if attempt == 1 else f" (after {attempt} attempts in {self._patience.limit:g} s)"
        told = self._public(str(error)) == str(error) and self._public(str(error.__cause__)) == str(error.__cause__)
        raise ArchiveError(f"s3://{self._name}: {what} failed{tried}: {words}") from (error if told else None)

    def _public(self, words: str) -> str:
        for secret in self._hidden:
            words = words.replace(secret, "***")
        return re.sub(r"//[^/@\s]+@", "//***@", words)


async def _whole(stream: Any) -> bytes:
    async with stream:  # a connection whose reply was not read to its end must not be used again
        return bytes(await stream.read())


def understood(error: Exception) -> S3Fault:
    """Return what went wrong below s3fs, which translates refusals to errors of the operating system."""
    cause = error.__cause__ if isinstance(error.__cause__, BotoCoreError | ClientError) else error
    if isinstance(cause, ClientError):
        told = cause.response.get("Error", {})
        code, message = str(told.get("Code", "")), str(told.get("Message", ""))
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        passing = status in _PASSING_STATUSES or code in _PASSING_CODES
        return S3Fault(code, f"{code}: {message or f'HTTP status {status}'}", passing)
    # What botocore says before it sends (no credentials, a bad parameter) does not pass, nor does a bad certificate.
    transport = isinstance(cause, HTTPClientError | NoConnectionError) and not isinstance(cause, SSLError)
    passing = transport or not isinstance(cause, BotoCoreError)
    return S3Fault("", f"{type(cause).__name__}: {cause}", passing)


def connect(options: Mapping[str, Any]) -> S3FileSystem:
    """Return s3fs with the settings that an archive needs; *options* are the user's own, and win where they may."""
    given = dict(options)
    config: dict[str, Any] = {
        "max_pool_connections": CONNECTIONS,
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
    }
    config |= {"signature_version": "s3v4"}  # else botocore presigns with version 2, which servers refuse
    # The SHA-256 in the signature already guards each body; a CRC beside it is a second pass over all bytes.
    config |= {"request_checksum_calculation": "when_required"}
    config |= given.pop("config_kwargs", None) or {}
    config["retries"] = {"total_max_attempts": 1}
    config["s3"] = {"payload_signing_enabled": True, **_addressing(given), **(config.get("s3") or {})}
    # A listing kept in memory never learns of other writers, and an instance kept is shared over forks.
    given |= {"use_listings_cache": False, "skip_instance_cache": True}
    filesystem = S3FileSystem(**given, config_kwargs=config)
    filesystem.retries = 1
    return filesystem


def _addressing(options: Mapping[str, Any]) -> dict[str, str]:
    # Servers other than Amazon's seldom have a host name for each bucket. botocore reads the same two variables.
    client = options.get("client_kwargs") or {}
    named = options.get("endpoint_url") or client.get("endpoint_url")
    endpoint = named or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"addressing_style": "path"} if endpoint and "amazonaws.com" not in endpoint else {}


def secrets_of(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the credentials among fsspec storage *options*."""
    both = {**options, **(options.get("client_kwargs") or {})}
    named = (
        "key",
        "secret",
        "token",
        "username",
        "password",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
    )
    return frozenset(str(both[name]) for name in named if both.get(name))
