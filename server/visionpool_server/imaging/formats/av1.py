"""The frame size that an AV1 bitstream announces (AV1 specification 1.0.0 with errata, sections 5.3 to 5.5).

AVIF states its size in a box of the container, and libavif scales whatever the bitstream holds to that size: a
kilobyte of AV1 can decode to a gigabyte behind a header that says 64x64. So the bitstream is asked as well.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_UNITS = 1024  # open bitstream units in one picture
_SEQUENCE_HEADER = 1


class _Bits:
    """Reads unsigned numbers, most significant bit first (4.10); bits past the end are zeros."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        value = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return value & ((1 << count) - 1)

    def skip_uvlc(self) -> None:
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        self.take(zeros % 32)


def largest_frame(stream: bytes) -> int:
    """Pixels of the largest frame that the sequence headers in `stream` allow; 0 where there is none.

    Raises `IndexError` where a unit is cut.
    """
    return max((_frame_limit(_Bits(unit)) for kind, unit in _units(stream) if kind == _SEQUENCE_HEADER), default=0)


def _units(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, first bytes of the payload) of each open bitstream unit (5.3)."""
    at = 0
    for _ in range(MAX_UNITS):
        if at >= len(stream):
            return
        kind, extended, sized = stream[at] >> 3 & 15, stream[at] & 4, stream[at] & 2
        at += 2 if extended else 1
        size = len(stream) - at
        if sized:
            size, shift = 0, 0
            while True:  # leb128 (4.10.5)
                size |= (stream[at] & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if not stream[at - 1] & 0x80 or shift > 56:
                    break
        yield kind, stream[at : at + min(size, 512)]
        at += size
    raise IndexError("too many units")


def _frame_limit(bits: _Bits) -> int:
    """max_frame_width x max_frame_height of a sequence header (5.5.1).

    A frame may override its size within the bits that the header sets aside for it. Encoders set aside as few
    as hold the maximum; where there are more, all that they can say counts.
    """
    bits.take(4)  # seq_profile, still_picture
    reduced = bits.take(1)
    if reduced:
        bits.take(5)  # seq_level_idx
    else:
        _skip_operating_points(bits)
    lengths = bits.take(4) + 1, bits.take(4) + 1
    sides = [bits.take(length) + 1 for length in lengths]
    if not reduced:
        sides = [side if 1 << length < 2 * side else 1 << length for side, length in zip(sides, lengths, strict=True)]
    return sides[0] * sides[1]


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing_info
        bits.take(64)
        if bits.take(1):
            bits.skip_uvlc()
        if bits.take(1):  # decoder_model_info
            delay_bits = bits.take(5) + 1
            bits.take(42)
    display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if display_delay and bits.take(1):
            bits.take(4)
