"""Bodies that travel compressed: gzip and deflate, both ways. What is inflated is bounded before it is there."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Mapping

from starlette.types import Receive
from visionpool.errors import InvalidRequest, UnsupportedMedia

from visionpool_server.api.accept import preferred
from visionpool_server.api.bodies import BodyLimits, receive_body
from visionpool_server.api.budget import Held

CODINGS = ("gzip", "deflate")
_KNOWN = ("identity", *CODINGS)
_STEP = 2**20  # bytes that are inflated at once
_FED = 2**16  # bytes that are given to zlib at once, which copies what it has not used yet
_MEMBERS = 2**16  # of one gzip body, each of which costs as much as some kilobytes: bgzip makes one for 64 KiB
_LARGE = 2**14  # bytes that are compressed elsewhere than on the event loop
_SMALL = 2**10  # bytes that are not worth compressing
_GZIP = 0x1F  # begins each member
_LEVEL = 1  # tensors hardly shrink, whatever the effort


async def read_decoded(receive: Receive, headers: Mapping[bytes, bytes], limits: BodyLimits, held: Held) -> bytes:
    """The whole body, inflated where its Content-Encoding says so.

    Raises what `receive_body` raises, of which the limits hold for what is inflated too; UnsupportedMedia for another
    coding, InvalidRequest for data that are not of the coding they claim.
    """
    declared = headers.get(b"content-length", b"").decode("latin-1")
    coding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    if coding not in ("", *_KNOWN):
        raise UnsupportedMedia(f"a body coded as {coding[:40]} is not read", hint=f"send it as {' or '.join(CODINGS)}")
    body = await receive_body(receive, declared, limits, held)
    return await _inflated(body, coding, limits, held) if coding in CODINGS else body


def wanted_coding(accept: bytes) -> str | None:
    """The coding that an Accept-Encoding header names and likes best, if it is one of ours (RFC 9110, 12.5.3)."""
    named = accept.lower()
    if not (b"gzip" in named or b"deflate" in named):
        return None
    best = next((coding for coding in preferred(named.decode("latin-1")) if coding in _KNOWN), "")
    return best if best in CODINGS else None


async def compressed(body: bytes, coding: str | None) -> tuple[bytes, str | None]:
    """`body` in that coding, and the coding; as it is, and None, where that is not worth it."""
    if coding is None or len(body) < _SMALL:
        return body, None
    if len(body) < _LARGE:
        return _compress(body, coding), coding
    return await asyncio.to_thread(_compress, body, coding), coding


def _compress(body: bytes, coding: str) -> bytes:
    return gzip.compress(body, _LEVEL, mtime=0) if coding == "gzip" else zlib.compress(body, _LEVEL)


async def _inflated(body: bytes, coding: str, limits: BodyLimits, held: Held) -> bytes:
    inflater = _Inflater(body, coding)
    pieces: list[bytes] = []
    size = 0
    while piece := await asyncio.to_thread(inflater.read, _STEP):
        size += len(piece)
        limits.check_bytes(size)
        held.take(len(piece))
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Inflater:
    """Reads compressed data piece by piece, with the header and the checksum of gzip, or of zlib, which is what HTTP means
    by deflate (RFC 9110, 8.4.1.2). Gzip data may have several members, one after the other (RFC 1952, 2.2)."""

    def __init__(self, body: bytes, coding: str) -> None:
        self._coding = coding
        self._body = memoryview(body)
        self._at = 0  # in the body: what lies before has been given to zlib
        self._members = 0
        self._begin()

    def read(self, limit: int) -> bytes:
        """At most `limit` more bytes, none at the end. Raises InvalidRequest."""
        while not (self._stream.eof and self._ended()):
            data = self._stream.unconsumed_tail or self._next()
            try:
                piece = self._stream.decompress(data, limit)
            except zlib.error as error:
                raise InvalidRequest(f"the body is not {self._coding}: {error}") from error
            if piece:
                return piece
            if not data and not self._stream.eof:
                raise InvalidRequest(f"the {self._coding} data of the body end too early")
        return b""

    def _ended(self) -> bool:
        """Whether all is read, at the end of a member; begins the next one where there is one."""
        self._at -= len(self._stream.unused_data)
        if self._at == len(self._body):
            return True
        if self._coding != "gzip" or self._body[self._at] != _GZIP:
            raise InvalidRequest(f"something follows the {self._coding} data of the body")
        if self._members == _MEMBERS:
            raise InvalidRequest(f"the body has more than {_MEMBERS} members of gzip", hint="compress it as a whole")
        self._begin()
        return False

    def _begin(self) -> None:
        self._members += 1
        self._stream = zlib.decompressobj(16 + zlib.MAX_WBITS if self._coding == "gzip" else zlib.MAX_WBITS)

    def _next(self) -> memoryview:
        begin, self._at = self._at, min(self._at + _FED, len(self._body))
        return self._body[begin : self._at]
