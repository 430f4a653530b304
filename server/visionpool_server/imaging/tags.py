"""Names beside what was found, and the panel of classes: text on backgrounds, kept inside the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from visionpool_server.imaging.lettering import (
    BLACK,
    WHITE,
    Color,
    Picture,
    Pixel,
    Span,
    Style,
    blend,
    fill,
    printable,
    readable_on,
    shortened,
    width_of,
    write,
)

_COVERED = 0.3  # the share of a picture that tags may cover
_ROWS = 5  # of a panel at most: it is a summary


@dataclass(frozen=True, slots=True)
class Tag:
    """A name on a filled background, and where it may stand: best the first of `places`."""

    text: str
    color: Color
    places: tuple[Pixel, ...]  # top left corners
    size: tuple[int, int]  # width, height


def tag_for(image: Picture, style: Style, text: str, color: Color, box: Span) -> Tag | None:
    """A tag for a box, at one of its corners and inside the picture; None where the picture is too small."""
    height, width = image.shape[:2]
    text = shortened(printable(text), style.text, width - 2 * style.pad)
    across, down = width_of(text, style.text) + 2 * style.pad, style.text + style.pad
    if not text or across > width or down > height:
        return None
    x0, y0, x1, y1 = box
    left, right, above, below = x0, x1 - across, y0 - down, y1
    wanted = ((left, above), (left, y0), (right, above), (left, below), (right, y1 - down), (right, below))
    places = [(min(max(x, 0), width - across), y) for x, y in wanted if 0 <= y <= height - down]
    nearest = min(max(left, 0), width - across), min(max(y0, 0), height - down)
    return Tag(text, color, tuple(places) or (nearest,), (across, down))


def put_tags(image: Picture, style: Style, tags: Sequence[Tag]) -> None:
    """Draws tags, the most important first in `tags`: each where the fewest others are, and below better ones.

    A small picture gets the first few only: it would be hidden under them.
    """
    room = image.shape[0] * image.shape[1] * _COVERED
    taken: list[Span] = []
    for tag in tags:
        room -= tag.size[0] * tag.size[1]
        if room < 0 and taken:
            break
        spans = [(x, y, x + tag.size[0], y + tag.size[1]) for x, y in tag.places]
        taken.append(min(spans, key=lambda span: _hidden(span, taken)))  # the first of equals
    for tag, span in reversed(list(zip(tags, taken, strict=False))):
        fill(image, span, tag.color)
        corner = span[0] + style.pad, span[1] + style.pad // 2
        write(image, tag.text, corner, style.text, readable_on(tag.color))


def _hidden(span: Span, others: Sequence[Span]) -> int:
    """How many pixels of `span` lie on other tags."""
    return sum(
        max(0, min(span[2], other[2]) - max(span[0], other[0]))
        * max(0, min(span[3], other[3]) - max(span[1], other[1]))
        for other in others
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a panel: a class, and its score or share in 0..1."""

    name: str
    share: float
    color: Color
    keyed: bool = False  # led by a square of its colour, as the key to a map

    @property
    def value(self) -> str:
        """The share as people read it: 81%, 4.0%, 0.3%."""
        return f"{self.share:.0%}" if self.share >= 0.0995 else f"{self.share:.1%}"


def put_panel(image: Picture, style: Style, rows: Sequence[Row], most: int = _ROWS) -> None:
    """Draws the first rows into the top left corner, `most` or as many as fit; none in a picture too small for one."""
    height, width = image.shape[:2]
    pad, bar = 2 * style.pad, max(2, style.text // 6)
    step = style.text + style.pad // 2 + bar + pad
    rows = rows[: max(0, min(most, (height - 3 * pad) // step))]
    if not rows or width < 8 * style.text:
        return
    wanted = max(_key(row, style) + width_of(printable(f"{row.name[:200]} : {row.value}"), style.text) for row in rows)
    inner = min(max(wanted, 8 * style.text), max(width // 2, 12 * style.text), width - 4 * pad)
    blend(image, _rounded(inner + 2 * pad, step * len(rows) + pad, pad, 175), (pad, pad), BLACK)
    for i, row in enumerate(rows):
        top = 2 * pad + i * step
        _put_row(image, style, row, (2 * pad, top, 2 * pad + inner, top + step - pad))


def _put_row(image: Picture, style: Style, row: Row, span: Span) -> None:
    """The name on the left, the value on the right, and the bar below both."""
    left, top, right, bottom = span
    value, key = width_of(row.value, style.text), _key(row, style)
    name = shortened(printable(row.name), style.text, right - left - value - style.pad - key)
    if key:
        inset = style.text // 6
        fill(image, (left, top + inset, left + style.text - 2 * inset, top + style.text - inset), row.color)
    write(image, name, (left + key, top), style.text, WHITE)
    write(image, row.value, (right - value, top), style.text, WHITE)
    length, bar = round((right - left) * min(max(0.0, row.share), 1.0)), top + style.text + style.pad // 2
    fill(image, (left, bar, right, bottom), WHITE, opacity=0.2)
    fill(image, (left, bar, left + length, bottom), row.color)


def _key(row: Row, style: Style) -> int:
    """The width of the square before the name."""
    return style.text if row.keyed else 0


def _rounded(width: int, height: int, radius: int, opacity: int) -> NDArray[np.uint8]:
    """A cover, (height, width), with round corners."""
    cover = np.zeros((height, width), np.uint8)
    cv2.rectangle(cover, (radius, radius), (width - 1 - radius, height - 1 - radius), opacity, -1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(cover, disc), np.uint8)
