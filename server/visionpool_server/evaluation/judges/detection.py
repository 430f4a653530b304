"""Average precision of boxes, and of masks where both sides have them, as COCO measures it: pycocotools does."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.results import DetectionResult, Result

from visionpool_server.evaluation.classes import ClassMap
from visionpool_server.evaluation.extra import needed
from visionpool_server.evaluation.judges import Scores, mismatch
from visionpool_server.evaluation.report import ClassScore, Curves
from visionpool_server.evaluation.truth import Objects, Sample

_STATS = ("map50_95", "map50", "map75", "map_small", "map_medium", "map_large")  # the order of COCOeval.stats
_LOOSE = 0  # the index of IoU .5 among .5, .55 ... .95
_ALL_AREAS, _MOST = 0, -1  # indices of the area range and of the most detections


class DetectionJudge:
    """Raises InvalidSetting where pycocotools is not installed.

    Entries are kept as COCO's tools want them; their ids count from 1, since its matching takes 0 for "no match".
    """

    def __init__(self, classes: ClassMap) -> None:
        needed("pycocotools")
        self._classes = classes
        self._images: list[dict[str, Any]] = []
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._masks = False

    def add(self, sample: Sample, result: Result) -> None:
        if not isinstance(result, DetectionResult) or not isinstance(sample.truth, Objects):
            raise mismatch(sample, result)
        image_id = len(self._images) + 1
        height, width = sample.truth.size
        self._images.append({"id": image_id, "height": height, "width": width})
        self._add_truth(image_id, sample.truth)
        self._add_found(image_id, result)

    def _add_truth(self, image_id: int, truth: Objects) -> None:
        boxes = _xywh(truth.boxes)
        for i, class_id in enumerate(truth.class_ids):
            if class_id in self._classes.names:
                entry = {"image_id": image_id, "category_id": class_id, "bbox": boxes[i], "area": truth.areas[i]}
                entry |= {"iscrowd": int(truth.crowds[i]), "id": len(self._truth) + 1}
                if truth.segments and truth.segments[i]:
                    entry["segmentation"] = truth.segments[i]
                self._truth.append(entry)

    def _add_found(self, image_id: int, result: DetectionResult) -> None:
        boxes = _xywh(np.array(result.boxes, np.float64).reshape(-1, 4))
        for i, label_id in enumerate(result.label_ids):
            class_id = self._classes.to_dataset.get(label_id)
            if class_id is None:
                continue
            box = boxes[i]
            entry = {"image_id": image_id, "category_id": class_id, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            entry |= {"score": result.scores[i], "id": len(self._found) + 1}
            if i < len(result.masks) and result.masks[i].rle:
                self._masks = True
                entry["segmentation"] = {"size": list(result.masks[i].shape), "counts": result.masks[i].rle}
            self._found.append(entry)

    def scores(self) -> Scores:
        names = self._classes.names
        evaluation = self._evaluated("bbox")
        precision = evaluation.eval["precision"]  # (10 overlaps, 101 recalls, classes, areas, limits)
        by_class = {
            class_id: precision[:, :, k, _ALL_AREAS, _MOST] for k, class_id in enumerate(evaluation.params.catIds)
        }
        present = {class_id: values for class_id, values in by_class.items() if (values > -1).any()}
        counts = np.unique([entry["category_id"] for entry in self._truth], return_counts=True)
        count = dict(zip(*(values.tolist() for values in counts), strict=True))
        return Scores(
            metrics=self._metrics(evaluation),
            classes=tuple(
                ClassScore(names[c], count.get(c, 0), {"map50_95": _mean(v), "map50": _mean(v[_LOOSE])})
                for c, v in present.items()
            ),
            chart=Curves(np.linspace(0, 1, 101), {names[c]: v[_LOOSE] for c, v in present.items()}),
            notes=self._notes(len(names) - len(present)),
        )

    def _metrics(self, evaluation: Any) -> dict[str, float]:
        metrics = dict(zip(_STATS, evaluation.stats[:6].tolist(), strict=True))
        metrics["ar100"] = float(evaluation.stats[8])
        if self._masks and self._truth and all("segmentation" in entry for entry in self._truth):
            masks = self._evaluated("segm").stats
            metrics |= {"mask_map50_95": float(masks[0]), "mask_map50": float(masks[1])}
        return {name: value for name, value in metrics.items() if value > -1}

    def _notes(self, absent: int) -> tuple[str, ...]:
        return (f"{absent} classes without an object in these pictures are left out of the means",) if absent else ()

    def _evaluated(self, kind: str) -> Any:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = COCO(), COCO()
            categories = [{"id": class_id, "name": name} for class_id, name in self._classes.names.items()]
            for coco, entries in ((truth, self._truth), (found, self._of_kind(kind))):
                coco.dataset = {"info": {}, "images": self._images, "categories": categories, "annotations": entries}
                coco.createIndex()
            evaluation = COCOeval(truth, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def _of_kind(self, kind: str) -> list[dict[str, Any]]:
        """What was found; for masks with the areas of these."""
        if kind == "bbox":
            return self._found
        from pycocotools import mask

        return [{**e, "area": float(mask.area(e["segmentation"]))} for e in self._found if "segmentation" in e]


def _xywh(boxes: NDArray[np.float64]) -> list[list[float]]:
    rows: list[list[float]] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    return rows


def _mean(precision: NDArray[np.float64]) -> float:
    return float(precision[precision > -1].mean())
