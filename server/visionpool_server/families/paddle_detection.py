"""Detectors that PaddleDetection exports with NMS in the graph (PicoDet, PP-YOLOE ...).

Inputs: `image`, and where the graph wants them `scale_factor` (N, 2) and `im_shape` (N, 2), both y before x. Outputs: rows
`[class, score, xmin, ymin, xmax, ymax]` in original pixels for all pictures, and the count of rows of each picture
(PaddleDetection `deploy/README`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import DetectionResult

from visionpool_server.families import FamilySpec, Options, Prepared, Tensors, class_ids, image_input
from visionpool_server.families.boxes import allowed, detection_result
from visionpool_server.imaging.recipe import Geometry, Image


class PaddleDetection:
    accepts = frozenset({"score_threshold", "max_detections", "classes"})
    fallback = Options(score_threshold=0.5, max_detections=300)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, _ = image_input(spec)
        if spec.recipe is None:
            raise InvalidModel(
                "a PaddleDetection export without its infer_cfg.yml does not say how pictures are prepared",
                hint="put infer_cfg.yml beside the model, or write preprocess: in model.yaml",
            )
        self.recipe = spec.recipe
        self._side_inputs = {name for name in spec.inputs if name != self.image_input}
        if unknown := self._side_inputs - {"scale_factor", "im_shape"}:
            raise InvalidModel(f"inputs that no PaddleDetection export has: {', '.join(sorted(unknown))}")
        self._rows, self._counts = _row_and_count_outputs(spec)
        self.defaults = spec.defaults.over(self.fallback)
        self.labels = spec.labels
        self.class_count = len(spec.labels) or None  # the rows do not say

    def prepare(self, image: Image, geometry: Geometry | None = None) -> Prepared:
        prepared, geometry = self.recipe.prepare(image, geometry)
        tensors: dict[str, NDArray[Any]] = {self.image_input: prepared}
        if "scale_factor" in self._side_inputs:
            tensors["scale_factor"] = np.array([geometry.scale_y, geometry.scale_x], np.float32)
        if "im_shape" in self._side_inputs:
            resized = round(geometry.height * geometry.scale_y), round(geometry.width * geometry.scale_x)
            tensors["im_shape"] = np.array(resized, np.float32)  # without what was padded
        return Prepared(tensors, geometry)

    def split(self, outputs: Tensors, count: int) -> Sequence[Tensors]:
        """Rows of picture i follow those of picture i - 1; a runtime that pads gives each picture an equal share.

        The batch itself may be padded: it then holds more than `count` pictures.
        """
        rows, counts = outputs[self._rows], outputs[self._counts].reshape(-1)
        packed = int(counts.sum()) == len(rows)
        share = len(rows) // len(counts)
        starts = np.cumsum(counts) - counts if packed else np.arange(len(counts)) * share
        return [
            {self._rows: rows[start : start + n], self._counts: np.asarray(n)}
            for start, n in zip(starts[:count], counts[:count], strict=True)
        ]

    def join(self, parts: Sequence[Tensors]) -> Tensors:
        joined = {self._rows: np.concatenate} | {self._counts: np.stack}
        return {name: joined[name]([part[name] for part in parts]) for name in parts[0]}

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> DetectionResult:
        chosen = options.over(self.defaults)
        rows = outputs[self._rows]
        rows = rows[(rows[:, 0] >= 0) & (rows[:, 1] > chosen.score_threshold)]
        if chosen.classes:
            rows = rows[allowed(rows[:, 0].astype(np.int64), class_ids(chosen.classes, self.labels, self.class_count))]
        rows = rows[np.argsort(-rows[:, 1], kind="stable")[: chosen.max_detections]]
        # The graph has divided by the scale; an offset, where there is one, is still to be taken off.
        offset = np.array([geometry.offset_x / geometry.scale_x, geometry.offset_y / geometry.scale_y] * 2, np.float32)
        boxes = geometry.clip(rows[:, 2:6] - offset)
        return detection_result(boxes, rows[:, 1], rows[:, 0].astype(np.int64), self.labels)


def _row_and_count_outputs(spec: FamilySpec) -> tuple[str, str]:
    rows = [name for name, shape in spec.outputs.items() if len(shape) == 2 and shape[1] == 6]
    counts = [name for name, shape in spec.outputs.items() if len(shape) == 1]
    if len(rows) != 1 or len(counts) != 1:
        raise InvalidModel(
            f"a PaddleDetection export with NMS has outputs (rows, 6) and (pictures,); this one {dict(spec.outputs)}",
            hint="for raw PicoDet heads say family: picodet",
        )
    return rows[0], counts[0]
