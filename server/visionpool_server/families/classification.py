"""Image classifiers: one score per class. Logits become probabilities; what already sums to 1 is left as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import ClassifyResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    Prepared,
    Tensors,
    class_ids,
    image_input,
    join_rows,
    label_of,
    picture_shape,
    split_by_row,
)
from visionpool_server.imaging.recipe import CenterCrop, Geometry, Image, Recipe, ResizeShort


class Classification:
    """Output (N, classes), or (N, classes, 1, 1)."""

    accepts = frozenset({"top_k", "score_threshold", "classes"})
    fallback = Options(top_k=5)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        self.recipe = spec.recipe or _usual_recipe(spec, fixed)
        if len(spec.outputs) != 1:
            raise InvalidModel(f"a classifier has one output; this model has {dict(spec.outputs)}")
        self._output, shape = next(iter(spec.outputs.items()))
        if any(size not in (1, None) for size in shape[2:]):
            raise InvalidModel(f"a classifier's output is (pictures, classes); this model's is {shape}")
        self.defaults = spec.defaults.over(self.fallback)
        self.labels = spec.labels
        self.class_count = shape[1] if len(shape) > 1 else None

    def prepare(self, image: Image, geometry: Geometry | None = None) -> Prepared:
        prepared, geometry = self.recipe.prepare(image, geometry)
        return Prepared({self.image_input: prepared}, geometry)

    def split(self, outputs: Tensors, count: int) -> Sequence[Tensors]:
        return split_by_row(outputs, count)

    def join(self, parts: Sequence[Tensors]) -> Tensors:
        return join_rows(parts)

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> ClassifyResult:  # noqa: ARG002  a protocol's signature
        """The `top_k` best classes over `score_threshold`, of those in `classes`."""
        chosen = options.over(self.defaults)
        scores = probabilities(outputs[self._output].reshape(-1))
        wanted = class_ids(chosen.classes, self.labels, len(scores)) if chosen.classes else range(len(scores))
        ids = np.array(wanted, np.intp)
        best = ids[highest(scores[ids], chosen.top_k or len(ids))]
        if chosen.score_threshold is not None:
            best = best[scores[best] > chosen.score_threshold]
        kept = best.tolist()
        return ClassifyResult(
            label_ids=tuple(kept),
            scores=tuple(np.round(scores[best].astype(np.float64), 6).tolist()),
            labels=tuple(label_of(self.labels, i) for i in kept),
        )


def _usual_recipe(spec: FamilySpec, fixed: tuple[int, int] | None) -> Recipe:
    """Ultralytics' way, where an export or model.yaml says `input_size`. Otherwise nothing tells how pictures are prepared,
    and a classifier that is fed wrongly answers nonsense without a word."""
    size = fixed or spec.input_size
    grey = any(picture_shape(shape).channels == 1 for shape in spec.inputs.values() if len(shape) == 4)
    if size is None or not (spec.input_size or grey):
        side = min(size) if size else 224
        raise InvalidModel(
            "neither the file nor model.yaml says how pictures are prepared for this classifier",
            hint=f"for most: preprocess: [{{resize_short: {round(side / 0.875)}}}, {{center_crop: {side}}}, "
            "{normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}] in model.yaml",
        )
    return Recipe((ResizeShort(min(size)), CenterCrop(size)))


def highest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The indices of the `count` highest scores, best first; of equal ones the first first. Sorts no more than it must."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.nonzero(scores >= least)[0]
    return candidates[np.argsort(-scores[candidates], kind="stable")[:count]]


def probabilities(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """`scores` (classes,), through softmax unless they are a distribution already (none negative, their sum 1)."""
    values = scores.astype(np.float32, copy=False)
    if values.min() >= 0 and abs(float(values.sum()) - 1) < 1e-2:
        return values
    exponents = np.exp(values - values.max())
    out: NDArray[np.float32] = exponents / exponents.sum()
    return out
