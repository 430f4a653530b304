"""Protobuf's wire format: the fields of a message, without the classes of its schema.

Reference: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

Data = bytes | mmap


class Message(NamedTuple):
    """The bytes from `start` to `end` of `data`, read as a message where somebody asks for its fields."""

    data: Data
    start: int
    end: int

    def fields(self) -> Iterator[tuple[int, Message | int]]:
        """Each field's number, and its content: bytes, which may be a message, or a number. Raises ValueError for others."""
        data, at, end = self
        while at < end:
            key, at = _number(data, at, end)
            match key & 7:
                case 0:
                    value, at = _number(data, at, end)
                    yield key >> 3, value
                case 1:
                    at += 8
                case 5:
                    at += 4
                case 2:
                    size, at = _number(data, at, end)
                    if at + size > end:
                        raise ValueError("a field reaches beyond its message")
                    yield key >> 3, Message(data, at, at + size)
                    at += size
                case kind:
                    raise ValueError(f"this is no protobuf: wire type {kind}")
        if at > end:
            raise ValueError("a field reaches beyond its message")

    def messages(self, wanted: int) -> Iterator[Message]:
        """The fields of this number that have bytes."""
        return (content for number, content in self.fields() if number == wanted and isinstance(content, Message))

    def texts(self, wanted: int) -> tuple[str, ...]:
        """Of all fields of this number. Raises ValueError for what is no UTF-8."""
        return tuple(each.text() for each in self.messages(wanted))

    def number(self, wanted: int, default: int | None = None) -> int | None:
        """The last one of this number, signed as an int64."""
        for number, content in self.fields():
            if number == wanted and isinstance(content, int):
                default = content - (1 << 64) if content >> 63 else content
        return default

    def text(self) -> str:
        return self.data[self.start : self.end].decode()


def _number(data: Data, at: int, end: int) -> tuple[int, int]:
    """A variable-length number, and where it ends."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value & (1 << 64) - 1, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    raise ValueError("a number reaches beyond its message")
