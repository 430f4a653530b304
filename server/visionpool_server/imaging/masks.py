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
    return rle_within(np.asarray(mask, np.uint8), (0, 0), (mask.shape[0], mask.shape[1]))


def rle_within(crop: Mask, corner: tuple[int, int], shape: tuple[int, int]) -> str:
    """`rle_of` a mask of `shape` (rows, columns) that is 0 but for `crop`, whose first pixel lies at `corner` (x, y).

    The crop lies inside. It takes the time of the crop, not of the whole.
    """
    rows, columns = crop.shape
    flat = np.zeros(columns * (rows + 1) + 1, bool)  # column after column, a 0 before each and behind the last
    flat[:-1].reshape(columns, rows + 1)[:, 1:] = cv2.transpose(crop) if crop.size else crop.T
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), rows + 1)  # runs begin and end by turns
    places = (column + corner[0]) * shape[0] + row + corner[1]
    starts, ends = places[::2], places[1::2]
    apart = starts[1:] != ends[:-1]  # a run may go on at the top of the next column
    starts, ends = starts[np.r_[True, apart][: len(starts)]], ends[np.r_[apart, True][: len(ends)]]
    whole = shape[0] * shape[1]
    last = [] if len(ends) and ends[-1] == whole else [whole]
    return _packed(np.diff(np.r_[0, np.stack([starts, ends], axis=1).ravel(), last].astype(np.int64)))


def _packed(counts: NDArray[np.int64]) -> str:
    values = counts.copy()
    values[3:] -= counts[1:-2]
    left, columns, open_ = values, [], np.ones(len(values), bool)
    used = [open_]
    while open_.any():
        bits, left = left & 0x1F, left >> 5
        open_ = open_ & (left != np.where(bits & 0x10, -1, 0))
        columns.append(np.where(open_, bits | 0x20, bits) + 48)
        used.append(open_)
    characters = np.stack(columns, axis=1).astype(np.uint8)
    text: bytes = characters[np.stack(used[:-1], axis=1)].tobytes()
    return text.decode("ascii")


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
