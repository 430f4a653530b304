"""Sizes, colours and text for pictures: what makes names readable on any background.

OpenCV 5 writes with a TrueType font and knows most scripts; OpenCV 4 has strokes for ASCII only. Both are
drawn large and scaled down to the wanted height, which makes even OpenCV 4's letters smooth at 10 pixels.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
Color = tuple[int, int, int]  # red, green, blue
Pixel = tuple[int, int]  # x, y
Span = tuple[int, int, int, int]  # x0, y0, x1, y1 in whole pixels, x1 and y1 outside

WHITE: Color = (255, 255, 255)
BLACK: Color = (16, 16, 20)
_UNICODE = int(cv2.__version__.split(".")[0]) >= 5
_FONT, _SCALE, _STROKE = cv2.FONT_HERSHEY_DUPLEX, 2.0, 1 if _UNICODE else 3
(_, _ASCENT), _DESCENT = cv2.getTextSize("Hg", _FONT, _SCALE, _STROKE)
_LINE: int = _ASCENT + _DESCENT  # pixels of a line of text at _SCALE


@dataclass(frozen=True, slots=True)
class Style:
    """Sizes in pixels that suit a picture: a large one has to stay readable when it is shown smaller."""

    line: int  # width of a box's lines
    text: int  # height of a line of text
    pad: int  # space between text and the edge of its background

    @classmethod
    def of(cls, image: Picture) -> Style:
        height, width = image.shape[:2]
        side = sqrt(height * width)  # and not the sum, which is large for a strip
        text = round(min(max(side * 0.028, 11), 72))
        return cls(line=max(1, round(side * 0.0036)), text=text, pad=max(2, text // 4))


@lru_cache(maxsize=1024)
def color_of(label_id: int) -> Color:
    """A colour that is always the same for a label, and far from those of its neighbours.

    Hues follow each other by the golden angle, in OKLCH, where equal steps look equal (B. Ottosson, 2020).
    """
    hue = (25 + 137.508 * label_id) % 360 / 180 * pi
    light, chroma = ((0.66, 0.21), (0.76, 0.17), (0.58, 0.20))[label_id % 3]
    a, b = chroma * cos(hue), chroma * sin(hue)
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (round(255 * min(max(value, 0.0), 1.0) ** (1 / 2.2)) for value in linear)
    return red, green, blue


def readable_on(color: Color) -> Color:
    """White where its contrast to `color` is at least 3:1, black otherwise (WCAG 2.2, 1.4.3)."""
    red, green, blue = ((value / 255) ** 2.2 for value in color)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return WHITE if 1.05 / (luminance + 0.05) >= 3 else BLACK


def printable(text: str) -> str:
    """`text` as far as it can be written: one line, without what OpenCV 4 would turn into question marks."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if _UNICODE:
        return line
    return unicodedata.normalize("NFKD", line).encode("ascii", "ignore").decode().strip()


def width_of(text: str, height: int) -> int:
    """The width of `text`, in pixels, where a line is `height` pixels high."""
    (width, _), _ = cv2.getTextSize(text, _FONT, _SCALE, _STROKE)
    return round(int(width) * height / _LINE)


def shortened(text: str, height: int, width: int) -> str:
    """`text` if it fits into `width`, else its beginning and two dots; empty where not even a letter fits."""
    text = text[:200]  # no picture shows more, and hostile labels can be long
    if width_of(text, height) <= width:
        return text
    low, high = 0, len(text)  # so many letters fit, so many do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = width_of(text[:middle] + "..", height) <= width
        low, high = (middle, high) if fits else (low, middle)
    return text[:low].rstrip() + ".." if low else ""


def write(image: Picture, text: str, at: Pixel, height: int, color: Color) -> None:
    """Writes one line of `height` pixels with its top left corner `at` this place."""
    margin = 24  # letters may reach out of their box: italics, accents
    (width, _), _ = cv2.getTextSize(text, _FONT, _SCALE, _STROKE)
    large = np.zeros((_LINE + 2 * margin, width + 2 * margin), np.uint8)
    cv2.putText(large, text, (margin, margin + _ASCENT), _FONT, _SCALE, 255, _STROKE, cv2.LINE_AA)
    ratio = height / _LINE
    size = max(1, round(large.shape[1] * ratio)), max(1, round(large.shape[0] * ratio))
    cover = cv2.resize(large, size, interpolation=cv2.INTER_AREA)
    blend(image, cover, (at[0] - round(margin * ratio), at[1] - round(margin * ratio)), color)


def blend(image: Picture, cover: NDArray[np.uint8], at: Pixel, color: Color) -> None:
    """Lays `color` over the picture `at` this place, as opaque as `cover` (H, W) says, clipped."""
    x, y = at
    height, width = image.shape[:2]
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + cover.shape[0], height), min(x + cover.shape[1], width)
    if top >= bottom or left >= right:
        return
    region = image[top:bottom, left:right]
    alpha = cover[top - y : bottom - y, left - x : right - x, None].astype(np.float32) / 255
    region[:] = (region + alpha * (np.array(color, np.float32) - region) + 0.5).astype(np.uint8)


def fill(image: Picture, span: Span, color: Color, opacity: float = 1.0) -> None:
    """Fills a rectangle, clipped to the picture."""
    x0, y0, x1, y1 = span
    x0, y0 = max(x0, 0), max(y0, 0)
    region = image[y0 : max(y1, y0), x0 : max(x1, x0)]
    region[:] = (region * (1 - opacity) + np.array(color, np.float32) * opacity + 0.5).astype(np.uint8)
