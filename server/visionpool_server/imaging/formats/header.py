"""What a picture's header says: the value that every reader in this folder returns."""

from __future__ import annotations

from dataclasses import dataclass

from visionpool.errors import InvalidImage


@dataclass(frozen=True, slots=True)
class Header:
    """A picture's header, and what is to be done with the pixels that OpenCV makes of it.

    `width`, `height`: pixels as OpenCV hands them over, so before `orientation` (EXIF 1 to 8) is applied.
    `raw`: `IMREAD_COLOR_RGB` would lose something (alpha, a transparent grey, the range of odd bit depths):
    decode with `IMREAD_UNCHANGED` and let `flatten` do the rest.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    raw: bool = False
    depth: int = 16  # bits that a uint16 sample uses; uint8 samples always use 8
    premultiplied: bool = False  # the colours are multiplied by alpha already
    inverted: bool = False  # 0 is white
    transparent_grey: int | None = None  # the grey sample that means "transparent"
    channel_bits: tuple[int, int, int] | None = None  # (R, G, B) bits that OpenCV shifts up without scaling
    frame: tuple[int, int, int, int] | None = None  # (x, y, w, h) of a frame that does not cover the canvas
    largest: int = 0  # pixels of the largest piece that is decoded, if known (TIFF tiles)

    @property
    def pixels(self) -> int:
        """Pixels that decoding has to hold at once."""
        return max(self.width * self.height, self.largest)


def corrupt(name: str, why: str) -> InvalidImage:
    """The error for a picture whose bytes contradict themselves."""
    return InvalidImage(f"the {name} is corrupt: {why}", hint="open it in a viewer and save it again")


def truncated(name: str) -> InvalidImage:
    """The error for a picture that stops too early."""
    return InvalidImage(f"the {name} is truncated: bytes are missing at its end", hint="send the whole file")
