"""Data sets of many formats as one `Dataset`. A new format is a function that recognises it, one that reads it, and a line here.

The order matters: what is recognised first is taken, from what can be mistaken least to what can be mistaken most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from visionpool.errors import InvalidSetting

from visionpool_server.evaluation.datasets import coco, folders, lists, masks, yolo
from visionpool_server.evaluation.truth import Dataset


@dataclass(frozen=True, slots=True)
class Format:
    """`recognise(path)` looks only at what is there; `read(path, images)` raises InvalidSetting."""

    recognise: Callable[[Path], bool]
    read: Callable[[Path, Path | None], Dataset]
    expected: str


FORMATS = {
    "coco": Format(coco.recognise, coco.read, coco.EXPECTED),
    "masks": Format(masks.recognise, masks.read, masks.EXPECTED),
    "yolo": Format(yolo.recognise, yolo.read, yolo.EXPECTED),
    "csv": Format(lists.recognise_csv, lists.read_csv, lists.CSV),
    "text": Format(lists.recognise_text, lists.read_lines, lists.TEXT),
    "mask-list": Format(lists.recognise_masks, lists.read_masks, masks.EXPECTED),
    "list": Format(lists.recognise_classes, lists.read_classes, lists.CLASSES),
    "folders": Format(folders.recognise, folders.read, folders.EXPECTED),
    "pictures": Format(folders.recognise_pictures, folders.read_pictures, folders.PICTURES),
}


def read_dataset(path: Path, format: str | None = None, images: Path | None = None) -> Dataset:  # noqa: A002 - the flag's name
    """The data set at `path`, of the format it looks like, or of the one named. `images`: where its pictures are.

    Raises InvalidSetting where it is none, with what was expected.
    """
    if not path.exists():
        raise InvalidSetting(f"{path} does not exist", hint="check the path of the data set")
    if images and not images.is_dir():
        raise InvalidSetting(f"--images {images} is not a folder")
    if format is not None and format not in FORMATS:
        raise InvalidSetting(f"unknown format {format!r}", hint=f"known: {', '.join(FORMATS)}")
    name = format or next((name for name, known in FORMATS.items() if known.recognise(path)), None)
    if name is None:
        raise InvalidSetting(
            f"{path} is no data set that is known here",
            hint="expected: " + "; ".join(dict.fromkeys(known.expected for known in FORMATS.values())),
        )
    return FORMATS[name].read(path, images)
