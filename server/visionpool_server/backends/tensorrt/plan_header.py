"""The first bytes of a plan: which library wrote it, and in which version.

Both libraries write a tag of four bytes, the version of the form, two lengths, and from byte 24 on the four numbers of their own
version (trtexec --getPlanVersionOnly reads them there; TensorRT-RTX has the same place). What follows is theirs alone.
"""

from __future__ import annotations

from typing import NamedTuple

_TAGS = {b"ftrt": False, b"vtrt": True}  # whether TensorRT-RTX wrote it
_VERSION, SIZE = 24, 28


class Header(NamedTuple):
    rtx: bool
    version: tuple[int, ...]

    @property
    def title(self) -> str:
        return f"{'TensorRT-RTX' if self.rtx else 'TensorRT'} {'.'.join(map(str, self.version))}"


def header_of(data: bytes) -> Header | None:
    """None for what is no plan."""
    if len(data) < SIZE or data[:4] not in _TAGS:
        return None
    return Header(_TAGS[data[:4]], tuple(data[_VERSION:SIZE]))
