"""How often the best class is the right one, or one of the best five, and what is taken for what."""

from __future__ import annotations

from collections import Counter

import numpy as np
from visionpool.results import ClassifyResult, Result

from visionpool_server.evaluation.classes import ClassMap
from visionpool_server.evaluation.judges import Scores, mismatch
from visionpool_server.evaluation.report import ClassScore, Confusion, Mistake
from visionpool_server.evaluation.truth import Sample

_BEST = 5


class ClassificationJudge:
    """`class_count`: the model's, where it is known: of five classes or fewer, top-5 says nothing."""

    def __init__(self, classes: ClassMap, class_count: int | None) -> None:
        self._classes = classes
        self._five = class_count is None or class_count > _BEST
        self._pairs: Counter[tuple[int, int | None]] = Counter()  # truth, prediction
        self._near: Counter[int] = Counter()  # among the best five
        self._left = 0
        self._mistakes: list[Mistake] = []

    def add(self, sample: Sample, result: Result) -> None:
        if not isinstance(result, ClassifyResult) or not isinstance(sample.truth, int):
            raise mismatch(sample, result)
        if sample.truth not in self._classes.names:
            self._left += 1
            return
        said = [self._classes.to_dataset.get(label_id) for label_id in result.label_ids[:_BEST]]
        best = said[0] if said else None
        self._pairs[sample.truth, best] += 1
        if best != sample.truth:
            other = result.labels[0] if result.labels else None  # it may be none of the data set's
            name = other if best is None else self._classes.names[best]
            self._mistakes.append(Mistake(sample.name, self._classes.names[sample.truth], name))
        self._near[sample.truth] += sample.truth in said

    def scores(self) -> Scores:
        confusion, ids = self._confusion()
        totals, right = confusion.counts.sum(axis=1), confusion.counts.diagonal()
        scored = [
            ClassScore(name, int(totals[i]), self._metrics(int(totals[i]), int(right[i]), self._near[ids[i]]))
            for i, name in enumerate(confusion.names)
            if totals[i]
        ]
        all_of_them = int(totals.sum())
        metrics = self._metrics(all_of_them, int(right.sum()), self._near.total()) if all_of_them else {}
        notes = (
            (f"{self._left} pictures are of classes that the model does not have, and left out",) if self._left else ()
        )
        return Scores(metrics, tuple(scored), confusion, notes, tuple(self._mistakes))

    def _metrics(self, count: int, right: int, near: int) -> dict[str, float]:
        return {"top1": right / count, **({"top5": near / count} if self._five else {})}

    def _confusion(self) -> tuple[Confusion, list[int]]:
        """Over the classes that occur, in the truth or in an answer, and their ids."""
        ids = sorted({class_id for pair in self._pairs for class_id in pair if class_id is not None})
        place: dict[int | None, int] = {class_id: i for i, class_id in enumerate(ids)}
        place[None] = len(ids)
        counts = np.zeros((len(ids), len(ids) + 1), np.int64)
        for (truth, said), count in self._pairs.items():
            counts[place[truth], place[said]] = count
        return Confusion(tuple(self._classes.names[class_id] for class_id in ids), counts), ids
