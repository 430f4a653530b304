"""What a data set says of its pictures, whichever files it came from: the readers of `datasets/` make it, judges use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["boxes", "classes", "masks", "text", "pictures"]  # pictures: nothing is known of them

TASKS: Mapping[Kind, str] = {"boxes": "detection", "classes": "classification", "masks": "segmentation", "text": "ocr"}


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one picture. `segments`: their outlines as COCO writes them, polygons or runs; None where unknown."""

    boxes: NDArray[np.float64]  # (n, 4) xmin, ymin, xmax, ymax in pixels
    class_ids: tuple[int, ...]
    crowds: tuple[bool, ...]  # a crowd: detections inside are neither right nor wrong
    areas: tuple[float, ...]
    size: tuple[int, int]  # height, width of the picture
    segments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A picture of class ids. `binary`: it has 0 and 255, which mean the classes 0 and 1."""

    path: Path
    binary: bool = False


Truth = Objects | MaskFile | int | str | None  # int: the picture's class; str: its text


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture, as the data set calls it, and what it shows."""

    name: str
    path: Path
    truth: Truth


@dataclass(frozen=True, slots=True)
class Dataset:
    """`names`: of classes, by their ids in the data set; empty where it has none. `notes`: what its reader has to say."""

    path: Path
    format: str
    kind: Kind
    samples: tuple[Sample, ...]
    names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def limited(self, count: int | None) -> Dataset:
        """The first `count` pictures; all for None."""
        return self if count is None else replace(self, samples=self.samples[:count])

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Those that it names, or else those that occur in it; none for masks, whose pixels have not been read."""
        if self.names:
            return tuple(sorted(self.names))
        found: set[int] = set()
        for sample in self.samples:
            if isinstance(sample.truth, Objects):
                found.update(sample.truth.class_ids)
            elif isinstance(sample.truth, int):
                found.add(sample.truth)
        return tuple(sorted(found))
