"""GIF (GIF89a specification, CompuServe 1990): logical screen and first image, and the file cut behind it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .header import Header, corrupt, truncated

NAME = "GIF"
MAX_BLOCKS = 1 << 18  # sub-blocks of 255 bytes: 64 MiB for one frame
_EXTENSION, _IMAGE = 0x21, 0x2C
_CONTROL = 0xF9


@dataclass(frozen=True, slots=True)
class _Image:
    """The first image: its rectangle on the screen, and where its data begins (the LZW code size)."""

    x: int
    y: int
    w: int
    h: int
    transparent: bool
    data: int


def read(view: memoryview) -> Header:
    """The size is that of the logical screen, grown to hold the first frame, as Pillow does it."""
    screen_w, screen_h = struct.unpack_from("<HH", view, 6)
    image = _first_image(view)
    if not image.w * image.h or not screen_w * screen_h:
        raise corrupt(NAME, "it has a width or a height of zero")
    width, height = max(screen_w, image.x + image.w), max(screen_h, image.y + image.h)
    covers = (image.w, image.h) == (width, height)
    frame = None if covers or image.transparent else (image.x, image.y, image.w, image.h)
    return Header(NAME, width, height, raw=image.transparent, frame=frame)


def first_frame(view: memoryview) -> bytes:
    """The GIF up to its first frame, on a screen that holds it (OpenCV refuses a frame that sticks out).

    A missing end of file is mended, as Pillow lets it pass; data that stop inside a block are `InvalidImage`.
    """
    header = read(view)
    end = _skip_blocks(view, _first_image(view).data + 1, iter(range(MAX_BLOCKS)))
    if end > len(view) + 1:  # one byte over: only the block terminator is missing
        raise truncated(NAME)
    screen = struct.pack("<HH", header.width, header.height)
    return b"".join((view[:6], screen, view[10 : end - 1], b"\0;"))


def _first_image(view: memoryview) -> _Image:
    at, transparent, budget = 13 + _table(view[10]), False, iter(range(MAX_BLOCKS))
    for _ in budget:
        kind = view[at]
        if kind == _IMAGE:
            x, y, w, h, packed = struct.unpack_from("<HHHHB", view, at + 1)
            return _Image(x, y, w, h, transparent, at + 10 + _table(packed))
        if kind != _EXTENSION:
            raise corrupt(NAME, "it holds no picture")
        if view[at + 1] == _CONTROL:
            transparent = bool(view[at + 3] & 1)
        at = _skip_blocks(view, at + 2, budget)
    raise corrupt(NAME, "it holds no picture")


def _table(packed: int) -> int:
    """Bytes of the colour table that the packed field announces (section 18)."""
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _skip_blocks(view: memoryview, at: int, budget: Iterator[int]) -> int:
    """Where the chain of sub-blocks (section 15) that begins at `at` ends; past the end of a cut file.

    `budget` is shared by all chains of a walk: chains of one-byte blocks are a way to keep a server busy.
    """
    size = len(view)
    for _ in budget:
        if at >= size or not view[at]:
            return at + 1
        at += view[at] + 1
    raise corrupt(NAME, f"it has more than {MAX_BLOCKS} blocks up to the end of its first frame")
