"""Arrays of pixels become JPEGs, by what the caller has for it: the client itself needs neither OpenCV nor Pillow."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import TYPE_CHECKING, Any

from visionpool.errors import InvalidImage, InvalidOption

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

JPEG_QUALITY = 95


def encode_jpeg(bgr: NDArray[uint8]) -> bytes:  # (H, W, 3), (H, W, 1) or (H, W)
    """A JPEG. Raises InvalidImage for one over 65535 pixels wide or high, InvalidOption where nothing writes JPEGs."""
    if max(bgr.shape[:2]) > 65535:
        raise InvalidImage(f"an array of shape {bgr.shape} is too large for a JPEG", hint="use encoding='lossless'")
    if "cv2" in sys.modules:  # as for everybody whose frames come from a cv2.VideoCapture
        return _by_opencv(bgr, sys.modules["cv2"])
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise InvalidOption(
            "nothing here writes JPEGs", hint="pip install pillow, import cv2, or use encoding='lossless'"
        ) from None
    return _by_pillow(bgr, Image)


def _by_opencv(bgr: NDArray[uint8], cv2: Any) -> bytes:
    written, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    if not written:
        raise InvalidImage(f"OpenCV cannot write an array of shape {bgr.shape} as a JPEG")
    encoded: bytes = data.tobytes()
    return encoded


def _by_pillow(bgr: NDArray[uint8], image: Any) -> bytes:
    grey = bgr.ndim == 2 or bgr.shape[2] == 1
    pixels = bgr.reshape(bgr.shape[:2]) if grey else bgr[..., ::-1]
    buffer = BytesIO()
    image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
