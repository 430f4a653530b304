"""How far the area of each class is that of the truth: intersection over union, over the pixels of all pictures together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidSetting
from visionpool.results import Result, SegmentationResult

from visionpool_server.evaluation.classes import ClassMap
from visionpool_server.evaluation.datasets.files import some
from visionpool_server.evaluation.datasets.masks import read_mask
from visionpool_server.evaluation.judges import Scores, mismatch
from visionpool_server.evaluation.report import ClassScore, Confusion
from visionpool_server.evaluation.truth import MaskFile, Sample
from visionpool_server.imaging.masks import map_of

_IDS = 1 << 16


class SegmentationJudge:
    """`ignored`: the value of pixels in the masks that count nowhere."""

    def __init__(self, classes: ClassMap, ignored: int) -> None:
        self._ids = sorted(classes.names)
        self._names = tuple(classes.names[class_id] for class_id in self._ids)
        place = {class_id: i for i, class_id in enumerate(self._ids)}
        self._truth = _table({class_id: place[class_id] for class_id in self._ids if class_id != ignored}, otherwise=-1)
        self._said = _table({mine: place[theirs] for mine, theirs in classes.to_dataset.items()}, otherwise=len(place))
        self._ignored = ignored
        self._counts = np.zeros((len(place), len(place) + 1), np.int64)
        self._strange: dict[int, int] = {}  # values of the masks that are no class -> pixels

    def add(self, sample: Sample, result: Result) -> None:
        if not isinstance(result, SegmentationResult) or not isinstance(sample.truth, MaskFile):
            raise mismatch(sample, result)
        mask, said = read_mask(sample.truth), label_map(result)
        if mask.shape != said.shape:
            raise InvalidSetting(
                f"{sample.name} has {said.shape[1]}x{said.shape[0]} pixels, its mask {mask.shape[1]}x{mask.shape[0]}",
                hint="a mask must have the size of its picture",
            )
        truth = self._truth[np.clip(mask, 0, _IDS - 1)]
        counted = truth >= 0
        columns = len(self._ids) + 1
        pairs = truth[counted] * columns + self._said[np.clip(said[counted], 0, _IDS - 1)]
        self._counts += np.bincount(pairs, minlength=self._counts.size).reshape(self._counts.shape)
        self._note_strange(mask[~counted])

    def _note_strange(self, values: NDArray[np.int32]) -> None:
        found, counts = np.unique(values[values != self._ignored], return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            self._strange[value] = self._strange.get(value, 0) + count

    def scores(self) -> Scores:
        right = self._counts.diagonal()
        truth, said = self._counts.sum(axis=1), self._counts[:, :-1].sum(axis=0)
        union = truth + said - right
        occur = np.flatnonzero(union)
        scored = []
        for i in occur.tolist():
            metrics = {"iou": float(right[i] / union[i])}
            if truth[i]:
                metrics["accuracy"] = float(right[i] / truth[i])
            scored.append(ClassScore(self._names[i], int(truth[i]), metrics))
        metrics = {}
        if truth.any():
            metrics = {
                "miou": float(np.mean([entry.metrics["iou"] for entry in scored])),
                "pixel_accuracy": float(right.sum() / truth.sum()),
                "mean_accuracy": float(np.mean([e.metrics["accuracy"] for e in scored if "accuracy" in e.metrics])),
            }
        chart = Confusion(
            tuple(self._names[i] for i in occur), self._counts[np.ix_(occur, np.append(occur, len(self._ids)))]
        )
        return Scores(metrics, tuple(scored), chart, self._notes())

    def _notes(self) -> tuple[str, ...]:
        if not self._strange:
            return ()
        values = some([str(value) for value in sorted(self._strange)], 8)
        return (
            f"{sum(self._strange.values())} pixels of the masks have values that are no class of the model's ({values}), "
            "and are left out",
        )


def label_map(result: SegmentationResult) -> NDArray[np.int32]:
    """(H, W) class ids of a result in either form."""
    if result.label_map_png:
        return map_of(result.label_map_png)
    return np.array(result.label_map, np.int32).reshape(result.shape)


def _table(values: dict[int, int], otherwise: int) -> NDArray[np.int64]:
    """A look-up table from ids."""
    table = np.full(_IDS, otherwise, np.int64)
    for key, value in values.items():
        table[key] = value
    return table
