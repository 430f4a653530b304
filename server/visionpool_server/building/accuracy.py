"""How much less accurate: both models on a labelled data set, scored by what `visionpool evaluate` is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from visionpool_server.building.progress import Notify
from visionpool_server.building.report import Scored
from visionpool_server.building.subject import Subject

if TYPE_CHECKING:
    from visionpool_server.evaluation import Dataset


def score(dataset: Dataset, original: Subject, built: Subject, notify: Notify) -> Scored:
    """Raises InvalidSetting where the data set does not fit the model, or none of its pictures can be read."""
    before, after = (
        _metrics(subject, dataset, f"scoring {which}", notify)
        for subject, which in ((original, "the original"), (built, "what was built"))
    )
    both = {name: (value, after[name]) for name, value in before.items() if name in after}
    return Scored(dataset.path, len(dataset.samples), both)


def _metrics(subject: Subject, dataset: Dataset, step: str, notify: Notify) -> Mapping[str, float]:
    from visionpool_server.evaluation import evaluate
    from visionpool_server.evaluation.subjects import LocalSubject

    asked = LocalSubject(subject.service, subject.model)
    total = len(dataset.samples)
    return evaluate(asked, dataset, progress=lambda done: notify(step, done, total)).metrics
