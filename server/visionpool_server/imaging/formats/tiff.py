"""TIFF (revision 6.0, and BigTIFF): the first image file directory.

OpenCV turns a TIFF by its orientation tag whatever it is told, so `Header.orientation` is only that of XMP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from visionpool.errors import UnsupportedMedia

from .exif import valid, xmp_orientation
from .header import Header, corrupt

NAME = "TIFF"
MAX_ENTRIES = 4096
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _TURN, _SAMPLES = 256, 257, 258, 259, 262, 274, 277
_TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _SAMPLE_FORMAT, _XMP = 322, 323, 338, 339, 700
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_WHITE_IS_ZERO, _RGB, _PALETTE, _CMYK = 0, 2, 3, 5
_ODD_BITS = (10, 12, 14)  # OpenCV shifts them up to 16, only with IMREAD_UNCHANGED, and leaves 0 what it was
_ASSOCIATED, _UNASSOCIATED = 1, 2  # kinds of alpha in ExtraSamples
_HINT = "save it as an 8-bit RGB TIFF or as PNG"


@dataclass(frozen=True, slots=True)
class _Field:
    kind: int
    count: int
    at: int  # where its values stand


class _Directory:
    """The fields of the first directory. Where a tag stands twice the first counts, as in libtiff."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._order = "<" if view[0] == 0x49 else ">"
        big = 43 in (view[2], view[3])
        at = self._at("Q" if big else "I", 8 if big else 4)
        count = self._at("Q" if big else "H", at)
        if not 0 < count <= MAX_ENTRIES:
            raise corrupt(NAME, f"its directory has {count} entries")
        step, inline, word = (20, 8, "Q") if big else (12, 4, "I")
        self._fields: dict[int, _Field] = {}
        for entry in range(at + (8 if big else 2), at + (8 if big else 2) + step * count, step):
            tag, kind, values = struct.unpack_from(self._order + "HH" + word, view, entry)
            held = values * {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 16: 8}.get(kind, 8)
            where = entry + 4 + inline if held <= inline else self._at(word, entry + 4 + inline)
            self._fields.setdefault(tag, _Field(kind, values, where))

    def _at(self, letter: str, at: int) -> int:
        return int(struct.unpack_from(self._order + letter, self._view, at)[0])

    def __contains__(self, tag: int) -> bool:
        return tag in self._fields

    def number(self, tag: int, default: int) -> int:
        """The first value of a field."""
        field = self._fields.get(tag)
        if field is None or field.kind not in _INTEGERS or not field.count:
            return default
        return self._at(_INTEGERS[field.kind], field.at)

    def bytes(self, tag: int) -> bytes:
        field = self._fields.get(tag)
        return b"" if field is None else bytes(self._view[field.at : field.at + min(field.count, 1 << 20)])


def read(view: memoryview) -> Header:
    """Raises `InvalidImage` (no size) and `UnsupportedMedia` (kinds of TIFF that OpenCV cannot decode)."""
    fields = _Directory(view)
    width, height = fields.number(_WIDTH, 0), fields.number(_HEIGHT, 0)
    bits, samples = fields.number(_BITS, 1), fields.number(_SAMPLES, 1)
    photometric = fields.number(_PHOTOMETRIC, -1)
    _check_kind(fields, bits, samples, photometric)
    extra = fields.number(_EXTRA, -1)
    alpha = samples == 4 and photometric == _RGB and extra != 0
    if fields.number(_TURN, 1) in (5, 6, 7, 8):
        width, height = height, width
    return Header(
        NAME,
        width,
        height,
        1 if _TURN in fields else valid(xmp_orientation(fields.bytes(_XMP)) or 1),
        raw=alpha or bits in _ODD_BITS,
        # libtiff multiplies 8-bit colours by an unassociated alpha; 16-bit samples come as they are stored.
        premultiplied=extra == _ASSOCIATED or (extra == _UNASSOCIATED and bits == 8),
        inverted=photometric == _WHITE_IS_ZERO and bits in _ODD_BITS,
        largest=fields.number(_TILE_WIDTH, 0) * fields.number(_TILE_HEIGHT, 0),
    )


def _check_kind(fields: _Directory, bits: int, samples: int, photometric: int) -> None:
    """Refuse by name what OpenCV's reader refuses, or shows wrong, without saying why."""
    reason = None
    if fields.number(_SAMPLE_FORMAT, 1) != 1 or bits > 16:
        reason = f"with {bits}-bit signed or floating point samples (measurements rather than a picture)"
    elif fields.number(_COMPRESSION, 1) == 6:
        reason = "with old-style JPEG compression"
    elif bits not in (1, 8, 16, *_ODD_BITS) and not (bits == 4 and photometric == _PALETTE):
        reason = f"with {bits} bits a sample"
    elif samples > 4 or (samples == 2 and fields.number(_EXTRA, 0) != 0):
        reason = f"with {samples} samples a pixel"
    elif photometric == _CMYK and bits != 8:
        reason = f"in {bits}-bit CMYK"
    elif photometric < 0:
        raise corrupt(NAME, "it does not say what its samples mean (PhotometricInterpretation)")
    if reason is not None:
        raise UnsupportedMedia(f"TIFF {reason} is not read", hint=_HINT)
