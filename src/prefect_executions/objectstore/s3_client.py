"""The S3 client for one bucket, through s3fs: one retry loop, one time limit, one kind of error.

s3fs and botocore have a retry loop each. Multiplied, a server that always answers
SlowDown gets 25 requests in 39 s, and a server that never answers blocks the caller
for 115 s (measured). Both loops are switched off; `Bucket.call` retries instead.
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

_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Transport faults that S3 reports with status 400, or that some servers report without a status.
_TRANSIENT_CODES = frozenset({"RequestTimeout", "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody", "SlowDown"})
_REQUEST_ERRORS = (OSError, BotoCoreError, ClientError, TransportError, ResponseParserError, TimeoutError)

MISSING = frozenset({"NoSuchKey", "404"})
"""The error codes of S3 for a missing object; a HEAD reply has no body, so its code is the status."""


class RefusedError(Exception):
    """The server refused a request with one of the error codes that the caller handles.

    The refusal may result from an earlier attempt that succeeded but whose reply was lost.
    """

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


class S3Fault(NamedTuple):
    """Why a request failed: the S3 error code or "", the message, and whether a retry can help."""

    code: str
    message: str
    transient: bool


class Reply(NamedTuple):
    """The reply to a request: its members, and the body if it was requested."""

    members: Mapping[str, Any]
    body: bytes


class Bucket:
    """A bucket for the coroutines of one store call, which share its time limit.

    Args:
        filesystem: The s3fs file system, in whose event loop the coroutines run.
        name: The bucket's name.
        budget: The time limit of the store call.
        credentials: Strings that error messages must not contain.
    """

    def __init__(self, filesystem: S3FileSystem, name: str, budget: RetryBudget, credentials: frozenset[str]) -> None:
        self._filesystem = filesystem
        self._name = name
        self._budget = budget
        self._credentials = credentials
        self._last_request = "nothing"
        self._last_fault: S3Fault | None = None

    async def call(
        self,
        method: str,
        key: str,
        request: Mapping[str, Any],
        *,
        allowed: frozenset[str] = frozenset(),
        body: bool = False,
        most: int | None = None,
    ) -> Reply:
        """Send a *request* for *key*, retry transient failures, and return the reply.

        It has its body if *body*, of which *most* limits the bytes.

        Raises:
            RefusedError: If the server refuses with one of the *allowed* codes.
            ArchiveError: If the request fails permanently or the time limit is reached.
        """
        part = f", part {request['PartNumber']}," if "PartNumber" in request else ""
        description = self._last_request = f"{method} of {key}{part}"
        attempt = 0
        while True:
            attempt += 1
            try:
                # The public `call_s3` is for threads only. Both add the user's s3_additional_kwargs (encryption, for
                # example) and drop parameters that the method does not have; the bare client does neither.
                members = await self._filesystem._call_s3(method, request, Bucket=self._name, Key=key)  # noqa: SLF001
                return Reply(members, await _read_body(members["Body"], most) if body else b"")
            except _REQUEST_ERRORS as error:
                fault = self._last_fault = classify_error(error)
                if fault.code in allowed:
                    raise RefusedError(fault.code) from None
                pause = self._budget.pause(attempt) if fault.transient else None
                if pause is None:
                    self._fail(description, fault, error, attempt)
            await asyncio.sleep(pause)

    async def presign(self, key: str, seconds: int) -> str:
        """Return a URL that reads *key* for *seconds*; this sends no request."""
        try:
            client = await self._filesystem.set_session()
            params = {"Bucket": self._name, "Key": key}
            return str(await client.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds))
        except _REQUEST_ERRORS as error:
            self._fail(f"presign of {key}", classify_error(error), error, 1)

    def timeout_error(self) -> ArchiveError:
        """Return the error for a store call that reached its time limit."""
        fault = f"; the last failure was {self._redact(self._last_fault.message)}" if self._last_fault else ""
        return ArchiveError(f"s3://{self._name}: {self._last_request} not done within {self._budget.limit:g} s{fault}")

    def _fail(self, description: str, fault: S3Fault, error: Exception, attempt: int) -> NoReturn:
        attempts = "" if attempt == 1 else f" (after {attempt} attempts in {self._budget.limit:g} s)"
        # A traceback shows the cause, so an error that contains credentials is not chained.
        safe = all(self._redact(text) == text for text in (str(error), str(error.__cause__)))
        message = f"s3://{self._name}: {description} failed{attempts}: {self._redact(fault.message)}"
        raise ArchiveError(message) from (error if safe else None)

    def _redact(self, text: str) -> str:
        for secret in self._credentials:
            text = text.replace(secret, "***")
        return re.sub(r"//[^/@\s]+@", "//***@", text)


async def _read_body(stream: Any, most: int | None) -> bytes:
    async with stream:  # a connection whose reply was not read to the end must not be reused
        if most is None:
            return bytes(await stream.read())
        data = bytearray()
        while len(data) < most and (piece := await stream.read(most - len(data))):
            data += piece
        return bytes(data)


def classify_error(error: Exception) -> S3Fault:
    """Return the fault behind *error*; s3fs wraps refusals in OSError."""
    cause = error.__cause__ if isinstance(error.__cause__, BotoCoreError | ClientError) else error
    if isinstance(cause, ClientError):
        details = cause.response.get("Error", {})
        code, message = str(details.get("Code", "")), str(details.get("Message", ""))
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        transient = status in _TRANSIENT_STATUSES or code in _TRANSIENT_CODES
        return S3Fault(code, f"{code}: {message or f'HTTP status {status}'}", transient)
    # Errors that botocore raises before sending (no credentials, a bad parameter) and bad certificates are permanent.
    transport = isinstance(cause, HTTPClientError | NoConnectionError) and not isinstance(cause, SSLError)
    transient = transport or not isinstance(cause, BotoCoreError)
    return S3Fault("", f"{type(cause).__name__}: {cause}", transient)


def connect(options: Mapping[str, Any]) -> S3FileSystem:
    """Return an s3fs file system with the settings that an archive needs; most user *options* override them."""
    user_options = dict(options)
    config: dict[str, Any] = {
        "max_pool_connections": CONNECTIONS,
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
    }
    config |= {"signature_version": "s3v4"}  # botocore presigns with version 2, which servers refuse
    # The SHA-256 in the signature already protects each body; a CRC would be a second pass over all bytes.
    config |= {"request_checksum_calculation": "when_required"}
    config |= user_options.pop("config_kwargs", None) or {}
    config["retries"] = {"total_max_attempts": 1}
    config["s3"] = {"payload_signing_enabled": True, **_addressing(user_options), **(config.get("s3") or {})}
    # A cached listing never shows other writers' objects, and a cached instance is shared across forks.
    user_options |= {"use_listings_cache": False, "skip_instance_cache": True}
    filesystem = S3FileSystem(**user_options, config_kwargs=config)
    filesystem.retries = 1
    return filesystem


def _addressing(options: Mapping[str, Any]) -> dict[str, str]:
    # Servers other than Amazon's seldom have a host name per bucket. botocore reads the same two variables.
    client = options.get("client_kwargs") or {}
    configured = options.get("endpoint_url") or client.get("endpoint_url")
    endpoint = configured or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"addressing_style": "path"} if endpoint and "amazonaws.com" not in endpoint else {}


def credentials_in(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the credentials in fsspec storage *options*, which error messages must not contain."""
    values = {**options, **(options.get("client_kwargs") or {})}
    names = (
        "key",
        "secret",
        "token",
        "username",
        "password",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
    )
    return frozenset(str(values[name]) for name in names if values.get(name))
