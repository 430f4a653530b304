"""What an evaluation found: figures, plain and typed, that a table, a plot and JSON are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What each figure is called in a table; in JSON it is the key. Of all but these, more is better.
TITLES = {
    "map50_95": "mAP 50-95",
    "map50": "mAP 50",
    "map75": "mAP 75",
    "map_small": "mAP small",
    "map_medium": "mAP medium",
    "map_large": "mAP large",
    "ar100": "recall (AR 100)",
    "mask_map50_95": "mask mAP 50-95",
    "mask_map50": "mask mAP 50",
    "top1": "top-1",
    "top5": "top-5",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
    "cer": "CER",
    "line_accuracy": "lines exactly right",
    "similarity": "mean similarity",
}
LESS_IS_BETTER = frozenset({"cer"})


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class. `count`: how often it occurs in the truth (objects, pictures, or pixels)."""

    name: str
    count: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Mistake:
    """A picture that was taken for something else. `error`: how far off, 1 wholly; of a line of text its error rate."""

    picture: str
    truth: str
    predicted: str | None
    error: float = 1.0


@dataclass(frozen=True, slots=True)
class Curves:
    """Precision over recall at an overlap of .5, for each class that occurs."""

    recall: NDArray[np.float64]  # (101,)
    precision: Mapping[str, NDArray[np.float64]]  # (101,) each


@dataclass(frozen=True, slots=True)
class Confusion:
    """`counts[i, j]`: how much of class i was taken for class j; the last column is for what is no class of the data set."""

    names: tuple[str, ...]
    counts: NDArray[np.int64]  # (classes, classes + 1)


@dataclass(frozen=True, slots=True)
class LineErrors:
    """The errors of lines of text: each line's rate, and how often which character was read as which ('' for none)."""

    rates: tuple[float, ...]
    characters: Mapping[tuple[str, str], int]


Chart = Curves | Confusion | LineErrors | None


@dataclass(frozen=True, slots=True)
class Report:
    """A model on a data set. `metrics`: 0..1 by the keys of TITLES. `chart` is for a plot, and not written as JSON but for a
    confusion's mistakes. `failed`: pictures that could not be read, with the reason; they count nowhere."""

    model: str
    where: str
    task: str
    dataset: str
    format: str
    pictures: int
    metrics: Mapping[str, float]
    classes: tuple[ClassScore, ...] = ()
    notes: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    matched_by: str = ""
    mistakes: tuple[Mistake, ...] = ()  # of classes and lines of text, worst first
    options: Mapping[str, Any] = field(default_factory=dict)
    chart: Chart = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = {
            "model": self.model,
            "where": self.where,
            "task": self.task,
            "dataset": self.dataset,
            "format": self.format,
            "pictures": self.pictures,
            "seconds": round(self.seconds, 3),
            "options": dict(self.options),
            "metrics": dict(self.metrics),
            "classes": [{"name": c.name, "count": c.count, **c.metrics} for c in self.classes],
            "classes_matched_by": self.matched_by or None,
            "notes": list(self.notes),
            "failed": dict(self.failed),
        }
        if self.task in ("classification", "ocr"):
            plain["mistakes"] = [asdict(mistake) for mistake in self.mistakes]
        if isinstance(self.chart, Confusion):
            plain["confusion"] = _confusion(self.chart)
        return plain


def _confusion(chart: Confusion) -> list[dict[str, Any]]:
    """What was taken for what, as far as it happened; null for what is no class of the data set."""
    names = [*chart.names, None]
    return [
        {"truth": names[row], "predicted": names[column], "count": int(chart.counts[row, column])}
        for row, column in np.argwhere(chart.counts).tolist()
    ]


@dataclass(frozen=True, slots=True)
class PictureDifference:
    """How far two models agree on a picture: 1 wholly, 0 not at all. `what` says in words where they differ."""

    picture: str
    agreement: float
    what: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same pictures. The reports have no figures where the data set knows nothing of its pictures."""

    first: Report
    second: Report
    pictures: tuple[PictureDifference, ...]  # worst first

    @property
    def agreement(self) -> float:
        """The mean over the pictures."""
        return float(np.mean([entry.agreement for entry in self.pictures])) if self.pictures else 1.0

    @property
    def difference(self) -> dict[str, float]:
        """The second's figures less the first's."""
        both = self.first.metrics.keys() & self.second.metrics.keys()
        return {name: self.second.metrics[name] - value for name, value in self.first.metrics.items() if name in both}

    def worst(self, count: int) -> tuple[PictureDifference, ...]:
        """The pictures on which they differ most; not those on which they agree."""
        return tuple(entry for entry in self.pictures[:count] if entry.what)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
            "difference": self.difference,
            "agreement": self.agreement,
            "pictures": [
                {"picture": e.picture, "agreement": e.agreement, "what": e.what, **e.details} for e in self.pictures
            ],
        }
