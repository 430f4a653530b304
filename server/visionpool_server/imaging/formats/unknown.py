"""What bytes look like that are no picture read here, in words for the person who sent them."""

from __future__ import annotations

import re

_STARTS = (
    (b"%PDF", "a PDF document (render its pages to pictures first)"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"v/1\x01", "an OpenEXR picture"),
)
_TEXTS = (
    (re.compile(rb"\s*(<!doctype html|<html|<head|<body)", re.I), "an HTML page (a failed download?)"),
    (re.compile(rb"\s*(<\?xml.{0,400})?(<!--.{0,200})?(<!doctype )?<?svg", re.I | re.S), "an SVG drawing"),
    (re.compile(rb"\s*<\?xml", re.I), "XML"),
    (re.compile(rb"\s*data:image/", re.I), "a data URL (send the bytes that its base64 part stands for)"),
    (re.compile(rb"\s*(/9j/|iVBORw0K|R0lGOD|UklGR)"), "base64 text (send the bytes that it stands for)"),
    (re.compile(rb"\s*[{\[]\s*[\"\[{\d]"), "JSON"),
)
_HEIF = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}


def describe(view: memoryview) -> str:
    """A noun phrase for the bytes: "an HTML page", "a PDF document", "text", "binary data that begin ..."."""
    head = bytes(view[:1024])
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        return "a HEIC picture" if head[8:12] in _HEIF else "an MP4 or QuickTime video"
    for pattern, name in _TEXTS:
        if pattern.match(head):
            return name
    if _is_text(head):
        return "text"
    return f"binary data that begin with {head[:4].hex(' ')}"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        text = head[: error.start].decode() if error.start > len(head) - 4 else "\0"
    return all(letter.isprintable() or letter in "\r\n\t\f" for letter in text)
