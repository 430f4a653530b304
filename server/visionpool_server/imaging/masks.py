"""Masks and maps of classes in compact forms: runs as COCO's tools write them, and grey PNG files. Both ways, exactly."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]  # (H, W) of 0 and 1


def rle_of(mask: Mask) -> str:
    """COCO's compressed runs of a mask: column by column, zeros first, each count from the fourth on as its difference to
    the one two before; five bits a character, six with the sign that more follow (cocoapi `common/maskApi.c`, rleToString).
    """
    flat = np.asarray(mask, np.uint8).ravel(order="F") != 0
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate([[0] if flat.size and flat[0] else [], changes, [flat.size]]).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    counts[3:] -= counts[1:-2].copy() if len(counts) > 3 else 0
    return "".join(map(_characters, counts.tolist()))


def _characters(value: int) -> str:
    text = ""
    while True:
        bits = value & 0x1F
        value >>= 5
        more = value != (-1 if bits & 0x10 else 0)
        text += chr((bits | 0x20 if more else bits) + 48)
        if not more:
            return text


def mask_of(rle: str, shape: tuple[int, int]) -> Mask:
    """The inverse of `rle_of`. Raises ValueError for runs that are not those of a mask of this (height, width)."""
    counts: list[int] = []
    value = shift = 0
    for character in rle:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        value = value - (1 << shift) if bits & 0x10 else value
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if sum(counts) != shape[0] * shape[1] or any(count < 0 for count in counts):
        raise ValueError(f"the runs cover {sum(counts)} pixels, and the mask has {shape[0]}x{shape[1]}")
    flat = np.repeat(np.arange(len(counts), dtype=np.uint8) & 1, counts)
    return flat.reshape(shape, order="F")


def png_of(values: NDArray[Any]) -> str:
    """(H, W) of integers below 65536 as a grey PNG file in base64: 8 bits where that is enough."""
    wide = values.size and int(values.max()) > np.iinfo(np.uint8).max
    _, data = cv2.imencode(".png", values.astype(np.uint16 if wide else np.uint8))
    return b64encode(data.tobytes()).decode()


def map_of(png: str) -> NDArray[np.int32]:
    """(H, W), the inverse of `png_of`. Raises ValueError for what is no picture."""
    values = cv2.imdecode(np.frombuffer(b64decode(png), np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    if values is None:
        raise ValueError("this is no PNG file")
    out: NDArray[np.int32] = values.astype(np.int32)
    return out
