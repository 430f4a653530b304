"""PP-OCR's classifiers of a line's direction: upright, or upside down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from visionpool.errors import InvalidModel
from visionpool.results import ClassifyResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    Prepared,
    Tensors,
    image_input,
    join_rows,
    label_of,
    split_by_row,
)
from visionpool_server.imaging.recipe import Arithmetic, Geometry, Image, Recipe
from visionpool_server.imaging.text_lines import TextLine

SIZE = (48, 192)  # (height, width) that it was trained for, whatever the file declares: Paddle's own says 32x100
ARITHMETIC = Arithmetic(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), channels="bgr")


class OcrDirection:
    """Output (N, 2): the probabilities of 0 and of 180 degrees."""

    accepts = frozenset({"top_k"})
    resizes = True  # the file's own size does not hold

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, _ = image_input(spec)
        height, width = spec.input_size or SIZE
        self.recipe = spec.recipe or Recipe((TextLine(height, (width,)),), ARITHMETIC)
        if len(spec.outputs) != 1:
            raise InvalidModel(f"a classifier of directions has one output; this model has {dict(spec.outputs)}")
        self._output, shape = next(iter(spec.outputs.items()))
        if len(shape) != 2 or shape[1] not in (2, None):
            raise InvalidModel(f"a classifier of directions gives (lines, 2); this model's output is {shape}")
        self.labels = spec.labels or ("0", "180")
        self.class_count: int | None = 2
        self.defaults = spec.defaults.over(Options(top_k=1))

    def prepare(self, image: Image, geometry: Geometry | None = None) -> Prepared:
        prepared, geometry = self.recipe.prepare(image, geometry)
        return Prepared({self.image_input: prepared}, geometry)

    def split(self, outputs: Tensors, count: int) -> Sequence[Tensors]:
        return split_by_row(outputs, count)

    def join(self, parts: Sequence[Tensors]) -> Tensors:
        return join_rows(parts)

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> ClassifyResult:  # noqa: ARG002  a protocol's signature
        scores = outputs[self._output].astype(np.float64)
        kept = np.argsort(-scores, kind="stable")[: options.over(self.defaults).top_k].tolist()
        return ClassifyResult(
            label_ids=tuple(kept),
            scores=tuple(np.round(scores[kept], 6).tolist()),
            labels=tuple(label_of(self.labels, i) for i in kept),
        )
