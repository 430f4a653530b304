"""What a build gained and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visionpool_server.backends import Precision
from visionpool_server.building.pictures import Pictures
from visionpool_server.building.speed import Speed


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of the weights on disk."""

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Compared:
    """How alike the two answer. `on`: what was asked of both, and how many of it."""

    on: str
    count: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scored:
    """What both score on a labelled data set: figure -> before, after."""

    dataset: Path
    pictures: int
    figures: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Report:
    """`before` and `after`: by which runtime and in which precision each ran, as it says. `speed` None: the runtime that it was
    built for could not run here."""

    model: str
    out: Path
    precision: Precision
    device: str
    before: str
    after: str
    size: Size
    speed: Speed | None
    compared: Compared
    scored: Scored | None = None
    pictures: Pictures | None = None
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        data = asdict(self)
        data["out"] = str(self.out)
        data["calibration"] = _calibration(data.pop("pictures"))
        if self.scored:
            named = {name: {"before": a, "after": b} for name, (a, b) in self.scored.figures.items()}
            data["scored"] = {"dataset": str(self.scored.dataset), "pictures": self.scored.pictures, "figures": named}
        return data


def _calibration(pictures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if pictures is None:
        return None
    skipped = [{"path": str(item["path"]), "reason": item["reason"]} for item in pictures["skipped"]]
    return {"pictures": len(pictures["calibration"]), "skipped": skipped}


def size_of(weights: Path) -> int:
    """Bytes of a model's file and of what belongs to it: .bin, .pdiparams, ONNX's external data; of a folder, all in it."""
    if weights.is_dir():
        return sum(path.stat().st_size for path in weights.rglob("*") if path.is_file())
    twins = {weights.with_suffix(suffix) for suffix in (".bin", ".pdiparams")}
    beside = (path for path in weights.parent.iterdir() if path in twins or path.name.startswith(weights.name))
    return sum(path.stat().st_size for path in beside if path.is_file())
