"""PP-OCR's classifiers of a line's direction: upright, or upside down."""

from __future__ import annotations

import numpy as np
from visionpool.errors import InvalidModel
from visionpool.results import ClassifyResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    PictureFamily,
    Tensors,
    image_input,
    label_of,
)
from visionpool_server.families.scores import finite
from visionpool_server.imaging.recipe import Arithmetic, Geometry, Recipe
from visionpool_server.imaging.text_lines import TextLine

SIZE = (48, 192)  # (height, width) that it was trained for, whatever the file declares: Paddle's own says 32x100
ARITHMETIC = Arithmetic(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), channels="bgr")


class OcrDirection(PictureFamily):
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

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> ClassifyResult:  # noqa: ARG002  a protocol's signature
        scores = finite(outputs[self._output].astype(np.float64))
        kept = np.argsort(-scores, kind="stable")[: options.over(self.defaults).top_k].tolist()
        return ClassifyResult(
            label_ids=tuple(kept),
            scores=tuple(np.round(scores[kept], 6).tolist()),
            labels=tuple(label_of(self.labels, i) for i in kept),
        )
