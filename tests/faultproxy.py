"""A proxy on loopback that harms chosen HTTP requests on their way to a real server.

Each fault is meant for some requests (by method and a piece of the path), and
strikes a number of times or for ever. The proxy remembers what passed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


@dataclass
class Fault:
    """What happens to a request; of the kinds below, one is set.

    Attributes:
        status: Answer with this HTTP status, `code` as S3's code; the server never sees the request.
        lost_reply: The server does what was asked, and the connection breaks before its answer.
        cut_request: Break the connection after this many bytes of the request's body.
        cut_reply: Break the connection after this many bytes of the reply's body.
        flip: Change one bit of this byte of the reply's body.
        silent: Never answer.
        times: How often it strikes; None is for ever.
        every: It strikes at every so manyth request that it is meant for.
    """

    method: str = ""
    path: str = ""
    status: int = 0
    code: str = "SlowDown"
    lost_reply: bool = False
    cut_request: int | None = None
    cut_reply: int | None = None
    flip: int | None = None
    silent: bool = False
    delay: float = 0.0
    times: int | None = None
    every: int = 1
    struck: int = 0
    seen: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Whether it strikes this request; counts it if so."""
        if (self.method and method != self.method) or self.path not in path:
            return False
        self.seen += 1
        if self.seen % self.every or (self.times is not None and self.struck >= self.times):
            return False
        self.struck += 1
        return True


@dataclass
class _Message:
    raw: bytes
    first: str
    headers: dict[str, str] = field(default_factory=dict)


class FaultProxy:
    """The proxy before the server at *upstream*, in a thread of its own; use it in a ``with`` statement."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc.split(":")
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._port = 0
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def harm(self, **kind: object) -> Fault:
        """Add a fault and return it; `struck` then tells how often it struck."""
        fault = Fault(**kind)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        self.faults.clear()

    def counted(self, method: str, path: str = "") -> int:
        """Return how many requests of that kind came."""
        return sum(1 for one_method, one_path in self.requests if one_method == method and path in one_path)

    def go_away(self) -> None:
        """Close the port and break all connections, as a server that is stopped does."""
        self._in_loop(self._close)

    def come_back(self) -> None:
        self._in_loop(self._listen)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._in_loop(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_loop(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(30)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1024**2)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server:
            self._server.close()
        for writer in list(self._writers):
            _break(writer)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        self._writers.add(writer)
        try:
            from_server, upstream = await asyncio.open_connection(self._upstream[0], int(self._upstream[1]))
            while await self._exchange(reader, writer, from_server, upstream):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            for one in (writer, upstream):
                if one:
                    one.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> bool:
        request = await _head(reader)
        method, path = request.first.split(" ")[:2]
        self.requests.append((method, path))
        fault = next((one for one in self.faults if one.strikes(method, path)), Fault())
        await asyncio.sleep(fault.delay)
        if fault.silent:
            await asyncio.sleep(3600)
        if "100-continue" in request.headers.get("expect", ""):
            # Answered here, so that the body of a request that is refused comes too; the server does not see the wish.
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            kept = [line for line in request.raw.split(b"\r\n") if not line.lower().startswith(b"expect:")]
            request.raw = b"\r\n".join(kept)
        if fault.status:
            await _copy(reader, None, request, fault.cut_request)
            await _refuse(writer, fault, method)
            return True
        to_server.write(request.raw)
        if not await _copy(reader, to_server, request, fault.cut_request):
            _break(to_server)
            _break(writer)
            return False
        return await self._answer(writer, from_server, fault, method)

    async def _answer(
        self, writer: asyncio.StreamWriter, from_server: asyncio.StreamReader, fault: Fault, method: str
    ) -> bool:
        reply = await _head(from_server)
        bodyless = method == "HEAD" or reply.first.split(" ")[1] in {"204", "304"}
        if fault.lost_reply:
            if not bodyless:
                await _copy(from_server, None, reply, None)
            _break(writer)
            return False
        writer.write(reply.raw)
        if not bodyless and not await _copy(from_server, writer, reply, fault.cut_reply, fault.flip):
            _break(writer)
            return False
        await writer.drain()
        return reply.headers.get("connection", "").lower() != "close"


def _break(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        # Linger for zero seconds: the other side sees a reset and not a regular end.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _head(reader: asyncio.StreamReader) -> _Message:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return _Message(raw, first, {name.strip().lower(): value.strip() for name, _, value in pairs})


async def _refuse(writer: asyncio.StreamWriter, fault: Fault, method: str) -> None:
    xml = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>as the test wants</Message></Error>".encode()
    head = f"HTTP/1.1 {fault.status} Refused\r\nContent-Type: application/xml\r\nContent-Length: {len(xml)}\r\n\r\n"
    writer.write(head.encode() + (b"" if method == "HEAD" else xml))
    await writer.drain()


class _Body:
    """One body on its way through: harmed, counted, and passed on if there is anybody to pass it to."""

    def __init__(self, writer: asyncio.StreamWriter | None, cut: int | None, flip: int | None) -> None:
        self._writer = writer
        self._cut = cut
        self._flip = flip
        self._passed = 0

    async def send(self, piece: bytes) -> bool:
        """Pass *piece* on; False when it was cut."""
        if self._flip is not None and self._passed <= self._flip < self._passed + len(piece):
            changed = bytearray(piece)
            changed[self._flip - self._passed] ^= 1
            piece = bytes(changed)
        rest = piece if self._cut is None else piece[: max(0, self._cut - self._passed)]
        self._passed += len(piece)
        if self._writer:
            self._writer.write(rest)
            await self._writer.drain()
        return len(rest) == len(piece)


async def _copy(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter | None,
    message: _Message,
    cut: int | None,
    flip: int | None = None,
) -> bool:
    """Copy the body of *message*; False when it was cut, by the fault or by its sender."""
    body = _Body(writer, cut, flip)
    if message.headers.get("transfer-encoding", "").lower() == "chunked":
        return await _copy_chunks(reader, body)
    left = int(message.headers.get("content-length", 0))
    while left:
        piece = await reader.read(min(left, 64 * 1024))
        left -= len(piece)
        if not piece or not await body.send(piece):
            return False
    return True


async def _copy_chunks(reader: asyncio.StreamReader, body: _Body) -> bool:
    size = -1
    while size:
        line = await reader.readline()
        size = int(line.split(b";")[0], 16)
        if not await body.send(line + await reader.readexactly(size + 2)):
            return False
    return True
