"""Paddle's `.pdiparams`: tensors one after the other, without a table. Read here for one question: is the file whole?

A tensor is, little-endian: uint32 version, uint64 number of LoD levels (each: uint64 bytes, then these), uint32 version, int32
size of the description, the description (a protobuf `VarType.TensorDesc`: 1 the type, 2 the dimensions), the values.
(Paddle, `paddle/phi/core/framework/dense_tensor_serialize.cc`, `dense_tensor_tostream.cc`)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO

# Bytes of a value, by the type's number in `VarType.Type`.
_SIZES = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 19: 8, 20: 1, 21: 1, 22: 2, 23: 8, 24: 16, 32: 1, 33: 1}


class _Unknown(Exception):
    """The file is not of the form that is known: nothing can be said of it."""


def truncated(path: Path) -> bool:
    """Whether a file ends within a tensor. False as well for one that is not understood: that is the converter's affair."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            while (at := file.tell()) < size:
                file.seek(_values(file), 1)
                if file.tell() <= at:
                    return False
            return file.tell() > size
    except EOFError:
        return True
    except _Unknown:
        return False


def _values(file: BinaryIO) -> int:
    """Reads what leads a tensor; the number of bytes of its values."""
    version, levels = _read(file, "<IQ")
    if version or levels > 16:
        raise _Unknown
    for _ in range(levels):
        file.seek(_read(file, "<Q")[0], 1)
    version, length = _read(file, "<Ii")
    if version or not 0 < length < 4096:
        raise _Unknown
    description = file.read(length)
    if len(description) < length:
        raise EOFError
    kind = 0
    dimensions: list[int] = []
    for field, value in _fields(description):
        if field == 1:
            kind = value
        elif field == 2:
            dimensions.append(value)
    if kind not in _SIZES or any(size >= 2**40 for size in dimensions):
        raise _Unknown
    return prod(dimensions) * _SIZES[kind]


def _read(file: BinaryIO, form: str) -> tuple[int, ...]:
    """Raises EOFError where there are too few bytes."""
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise EOFError
    return struct.unpack(form, data)


def _fields(message: bytes) -> Iterator[tuple[int, int]]:
    """The numbers in a protobuf message, packed or not, with their fields."""
    numbers = iter(message)
    for tag in numbers:
        if tag & 7 == 0:
            yield tag >> 3, _varint(numbers)
        elif tag & 7 == 2:
            packed = iter(bytes(_next(numbers) for _ in range(_varint(numbers))))
            for first in packed:
                yield tag >> 3, _varint(packed, first)
        else:
            raise _Unknown


def _varint(numbers: Iterator[int], first: int | None = None) -> int:
    byte = _next(numbers) if first is None else first
    value, shift = byte & 127, 7
    while byte & 128:
        byte = _next(numbers)
        value |= (byte & 127) << shift
        shift += 7
    return value


def _next(numbers: Iterator[int]) -> int:
    """Raises _Unknown at the end."""
    for number in numbers:
        return number
    raise _Unknown
