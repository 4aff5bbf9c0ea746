# SPDX-License-Identifier: Apache-2.0
"""One end of an HTTP/2 connection, frame by frame: nothing is done that the test does not ask for, except acks."""

from __future__ import annotations

import asyncio
import ssl
from typing import TypeVar

from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame

from perf.peers.certs import LeafFiles

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
F = TypeVar("F", bound=Frame)


def tls_context(files: LeafFiles, *, server: bool) -> ssl.SSLContext:
    """Mutual TLS with the leaf in `files`; names are not checked, there are none in SPIFFE."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.chain, files.key)
    context.load_verify_locations(files.roots)
    context.set_alpn_protocols(["h2"])
    return context


class Peer:
    """Acks SETTINGS and (unless told not to) PING while it reads; all other frames are the test's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.answers_pings = True
        self.seen: list[Frame] = []
        self._unread: list[Frame] = []
        self._encoder, self._decoder = Encoder(), Decoder()

    def send(self, frame: Frame) -> None:
        self.writer.write(frame.serialize())

    def send_headers(self, stream: int, headers: list[tuple[str, str]]) -> None:
        self.send(HeadersFrame(stream, self._encoder.encode(headers), flags=["END_HEADERS"]))

    def decode(self, frame: HeadersFrame) -> list[tuple[str, str]]:
        """Each header block once and in order: the compression state is shared."""
        return [(name.decode(), value.decode()) for name, value in self._decoder.decode(frame.data, raw=True)]

    async def read_frame(self) -> Frame:
        head = await self.reader.readexactly(9)
        frame, length = Frame.parse_frame_header(memoryview(head))
        frame.parse_body(memoryview(await self.reader.readexactly(length)))
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.send(SettingsFrame(0, flags=["ACK"]))
        if isinstance(frame, PingFrame) and "ACK" not in frame.flags and self.answers_pings:
            self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        self.seen.append(frame)
        return frame

    async def expect(self, kind: type[F], stream: int | None = None) -> F:
        """The next frame of that kind (on that stream) which no earlier call has returned; acks do not count."""

        def fits(frame: Frame) -> bool:
            return isinstance(frame, kind) and "ACK" not in frame.flags and stream in (None, frame.stream_id)

        for number, frame in enumerate(self._unread):
            if fits(frame):
                del self._unread[number]
                assert isinstance(frame, kind)
                return frame
        try:
            async with asyncio.timeout(10):
                while True:
                    frame = await self.read_frame()
                    if fits(frame):
                        assert isinstance(frame, kind)
                        return frame
                    self._unread.append(frame)
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            raise AssertionError(f"no {kind.__name__} came; seen: {self.seen}") from error

    async def round_trip(self) -> None:
        """Everything the other end wrote before it answers has been read when this returns."""
        self.send(PingFrame(0, b"roundtrp"))
        async with asyncio.timeout(10):
            while True:
                frame = await self.read_frame()
                if isinstance(frame, PingFrame) and "ACK" in frame.flags:
                    return
                self._unread.append(frame)

    async def requests(self, count: int) -> list[HeadersFrame]:
        return [await self.expect(HeadersFrame) for _ in range(count)]

    async def data_until_end(self, stream: int) -> bytes:
        data = b""
        while True:
            frame = await self.expect(DataFrame, stream)
            data += frame.data
            if "END_STREAM" in frame.flags:
                return data


class MemoryTls:
    """A TLS client whose records pass through our hands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self.reader, self.writer = reader, writer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)

    @classmethod
    async def open(cls, ip: str, port: int, context: ssl.SSLContext) -> MemoryTls:
        """The handshake is done when it returns."""
        self = cls(*await asyncio.open_connection(ip, port), context)
        async with asyncio.timeout(10):
            while True:
                try:
                    self._tls.do_handshake()
                    self.writer.write(self._out.read())
                    return self
                except ssl.SSLWantReadError:
                    self.writer.write(self._out.read())
                    self._in.write(await self.reader.read(1 << 16))

    def seal(self, data: bytes) -> bytes:
        """The records that carry `data`."""
        self._tls.write(data)
        return self._out.read()

    async def write(self, data: bytes) -> None:
        self.writer.write(self.seal(data))
        await self.writer.drain()
