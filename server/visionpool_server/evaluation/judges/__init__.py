"""The seam to the kinds of figures: a judge takes a model's answers, picture by picture, and gives scores in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from visionpool.errors import InvalidSetting
from visionpool.results import Result

from visionpool_server.evaluation.report import Chart, ClassScore, Mistake
from visionpool_server.evaluation.truth import Sample


@dataclass(frozen=True, slots=True)
class Scores:
    metrics: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[ClassScore, ...] = ()
    chart: Chart = None
    notes: tuple[str, ...] = ()
    mistakes: tuple[Mistake, ...] = ()


class Judge(Protocol):
    def add(self, sample: Sample, result: Result) -> None:
        """Raises InvalidSetting where the result is of another kind than the truth."""

    def scores(self) -> Scores: ...


class Nothing:
    """The judge of pictures that nothing is known of."""

    def add(self, sample: Sample, result: Result) -> None:
        """Nothing can be said."""

    def scores(self) -> Scores:
        return Scores()


def mismatch(sample: Sample, result: Result) -> InvalidSetting:
    return InvalidSetting(
        f"{sample.name}: the model's answer is of type {result.type!r}, which the data set says nothing of"
    )
