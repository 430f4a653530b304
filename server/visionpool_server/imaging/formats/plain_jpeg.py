"""Which JPEGs another decoder may have in the place of libjpeg: those whole ones that leave no room for an opinion.

What a decoder does of a damaged or an odd file is its own affair: libjpeg refuses some, repairs some, and the next one does
otherwise. So that a picture is refused or read alike whoever decodes it, a GPU is given only what this module lets through: 8-bit
baseline or progressive YCbCr, each segment well-formed (ITU-T T.81 annex B), each table there before it is used, every scan
ended by a marker, nothing missing, an end. All else is libjpeg's. What is inside the scans is not looked at: there libjpeg
reads on whatever it finds, and so never refuses.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from .jpeg import MAX_SCANS, MAX_SEGMENTS

_SOF0, _SOF2, _DHT, _SOI, _EOI, _SOS, _DQT, _DRI = 0xC0, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD
_APP14, _COM = 0xEE, 0xFE
_APPLICATIONS = range(0xE0, 0xF0)
_SAMPLINGS = {0x11, 0x21, 0x22, 0x12, 0x41}  # of Y, where Cb and Cr have 0x11: 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1
_IDS = (b"\1\2\3", b"\0\1\2")  # others may mean RGB
_YCC = 1  # Adobe's name for YCbCr
_MOST_DC, _MOST_SHIFT = 15, 13  # libjpeg's limits: bits of a difference of DC, and `Al` of a progressive scan
_UNSEEN = -1


class _NotPlain(Exception):
    pass


def plain_end(view: memoryview) -> int | None:
    """Where a plain JPEG ends, behind its end marker; None for any that is not plain."""
    try:
        return _Walk(view).end()
    except (_NotPlain, IndexError, struct.error):
        return None


class _Walk:
    """Once over the markers of a file, with what they have said so far."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._quantisation: set[int] = set()
        self._huffman: set[int] = set()  # class << 4 | number
        self._components: dict[int, int] = {}  # id -> its quantisation table
        self._progressive = False
        self._scans = 0
        self._bits: NDArray[np.int8] = np.full((3, 64), _UNSEEN, np.int8)  # up to which bit each coefficient has come
        self._markers: NDArray[np.intp] | None = None

    def end(self) -> int:
        _require(bytes(self._view[:2]) == bytes((0xFF, _SOI)))
        at = 2
        for _ in range(MAX_SEGMENTS):
            _require(self._view[at] == 0xFF)
            code = self._view[at + 1]
            if code == _EOI:
                _require(self._scans > 0 and not self._bits.any())
                return at + 2
            (length,) = struct.unpack_from(">H", self._view, at + 2)
            at += 2 + length
            _require(length >= 2 and at <= len(self._view))
            self._segment(code, bytes(self._view[at - length + 2 : at]))
            if code == _SOS:
                at = self._next_marker(at)
        raise _NotPlain

    def _segment(self, code: int, body: bytes) -> None:
        if code in (_SOF0, _SOF2):
            self._frame(code, body)
        elif code == _SOS:
            self._scan(body)
        elif code == _DHT:
            self._huffman_tables(body)
        elif code == _DQT:
            self._quantisation_tables(body)
        elif code == _DRI:
            _require(len(body) == 2)
        elif code == _APP14 and body.startswith(b"Adobe"):
            _require(len(body) >= 12 and body[11] == _YCC)
        else:
            _require(code in _APPLICATIONS or code == _COM)

    def _frame(self, code: int, body: bytes) -> None:
        precision, height, width, count = struct.unpack_from(">BHHB", body)
        _require(not self._components and precision == 8 and height > 0 and width > 0 and count == 3)
        _require(len(body) == 15 and body[6::3] in _IDS and body[7] in _SAMPLINGS and body[10] == body[13] == 0x11)
        self._components = dict(zip(body[6::3], body[8::3], strict=True))
        self._progressive = code == _SOF2

    def _quantisation_tables(self, body: bytes) -> None:
        _require(len(body) % 65 == 0)
        for start in range(0, len(body), 65):
            _require(body[start] < 4 and 0 not in body[start + 1 : start + 65])  # of 8 bits, as goes with 8-bit pixels
            self._quantisation.add(body[start])

    def _huffman_tables(self, body: bytes) -> None:
        while body:
            counts = body[1:17]
            symbols, body, which = body[17 : 17 + sum(counts)], body[17 + sum(counts) :], body[0]
            _require(len(counts) == 16 and 0 < len(symbols) == sum(counts) and which & 0xEF < 4)
            _require(which >= 0x10 or max(symbols) <= _MOST_DC)
            code = 0
            for bits, count in enumerate(counts, 1):
                code = 2 * code + count
                _require(not count or code < 1 << bits)  # no code is all ones
            self._huffman.add(which)

    def _scan(self, body: bytes) -> None:
        count = body[0]
        _require(len(self._components) == 3 and 1 <= count <= 3 and len(body) == 4 + 2 * count)
        which = [list(self._components).index(id_) if id_ in self._components else -1 for id_ in body[1:-3:2]]
        _require(which == sorted(set(which)) and which[0] >= 0)
        _require(self._quantisation.issuperset(self._components.values()))
        self._scans += 1
        _require(self._scans <= MAX_SCANS)
        (first, last, shifts), tables = body[-3:], body[2:-3:2]
        high, low = shifts >> 4, shifts & 15
        if self._progressive:
            _require(last == 0 if first == 0 else count == 1 and first <= last < 64)
            _require(high in (0, low + 1) and low <= _MOST_SHIFT)
            needs = [0x10 | table & 15 for table in tables] if first else [table >> 4 for table in tables if not high]
        else:
            _require(count == 3 and (first, last, shifts) == (0, 63, 0))
            needs = [number for table in tables for number in (table >> 4, 0x10 | table & 15)]
        _require(self._huffman.issuperset(needs))
        _require(not first or bool((self._bits[which, 0] != _UNSEEN).all()))  # DC comes before AC
        _require(bool((self._bits[which, first : last + 1] == (high or _UNSEEN)).all()))
        self._bits[which, first : last + 1] = low

    def _next_marker(self, at: int) -> int:
        """Where the data of a scan end that begin at `at`. The bytes are gone over once, for all scans."""
        if self._markers is None:
            data = np.frombuffer(self._view, np.uint8)
            found = np.flatnonzero(data[at:-1] == 0xFF) + at
            codes = data[found + 1]
            self._markers = found[(codes != 0) & (codes & 0xF8 != 0xD0)]  # other than stuffed bytes and restarts
        place = int(np.searchsorted(self._markers, at))
        return int(self._markers[place])


def _require(plain: bool) -> None:
    if not plain:
        raise _NotPlain
