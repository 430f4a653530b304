"""The memory of the fake NVIDIA driver: RAM with real addresses, garbage until written, and poison once freed.

Each block stands between guards, which show whoever writes past its end. Freed blocks are kept, so that no address comes twice.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

GARBAGE = 0xFF  # of floats it makes NaN
POISON = 0xDB
_GUARD, _GUARDED = 0x5C, 256  # what guards hold, and how long each is, which is how addresses are aligned, too


class Span(NamedTuple):
    """Some bytes."""

    address: int
    size: int


@dataclass(slots=True)
class Access:
    """Bytes `start` to `end` of a block, used by the `tick`th work of a stream."""

    start: int
    end: int
    write: bool
    stream: int
    tick: int
    name: str


@dataclass(eq=False, slots=True)
class Block:
    """`ordinal`: the device that it is on, or whose context it was made with."""

    address: int
    size: int
    kind: Literal["device", "pinned"]
    ordinal: int
    raw: NDArray[np.uint8]
    alive: bool = True
    accesses: list[Access] = field(default_factory=list)
    written: list[tuple[int, int]] = field(default_factory=list)  # from where to where somebody wrote: ascending, apart

    @property
    def bytes(self) -> NDArray[np.uint8]:
        begin = self.address - self.raw.ctypes.data
        return self.raw[begin : begin + self.size]

    def whole(self) -> bool:
        """Whether its guards are as they were."""
        begin = self.address - self.raw.ctypes.data
        before, after = self.raw[:begin], self.raw[begin + self.size :]
        return bool((before == _GUARD).all() and (after == _GUARD).all())

    def note_written(self, start: int, end: int) -> None:
        apart = [(a, b) for a, b in self.written if b < start or a > end]
        joined = [(a, b) for a, b in self.written if not (b < start or a > end)]
        insort(apart, (min([start, *(a for a, _ in joined)]), max([end, *(b for _, b in joined)])))
        self.written = apart

    def is_written(self, start: int, end: int) -> bool:
        return any(a <= start and end <= b for a, b in self.written)


class Memory:
    """All blocks that ever were. Not thread-safe."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}
        self._addresses: list[int] = []

    def allocate(self, size: int, kind: Literal["device", "pinned"], ordinal: int) -> int:
        raw = np.full(size + 3 * _GUARDED, _GUARD, np.uint8)
        address = -(-(raw.ctypes.data + _GUARDED) // _GUARDED) * _GUARDED
        block = Block(address, size, kind, ordinal, raw)
        block.bytes[:] = GARBAGE
        self._blocks[address] = block
        insort(self._addresses, address)
        return address

    def at(self, address: int) -> Block | None:
        """The block that begins there, freed or not."""
        return self._blocks.get(address)

    def around(self, address: int, size: int = 1) -> Block | None:
        """The block that holds all these bytes, freed or not."""
        place = bisect_right(self._addresses, address) - 1
        if place < 0:
            return None
        block = self._blocks[self._addresses[place]]
        return block if address + size <= block.address + block.size else None

    def free(self, block: Block) -> None:
        block.bytes[:] = POISON
        block.alive = False
        block.accesses.clear()

    def alive(self) -> Iterator[Block]:
        return (block for block in self._blocks.values() if block.alive)

    def all(self) -> Iterator[Block]:
        return iter(self._blocks.values())


def read(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


def copy(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)


def fill(address: int, value: int, size: int) -> None:
    ctypes.memset(address, value, size)


def overlap(a: Span, b: Span) -> bool:
    return a.address < b.address + b.size and b.address < a.address + a.size
