"""Image classifiers: one score per class, of which one holds (softmax) or several may (sigmoid: multi-label).

Whether the outputs are scores already is asked of, in this order: `postprocess.activation` of model.yaml, the graph's last
operator, and last the values of each picture: none negative and their sum 1 is a distribution, anything else are logits.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import ClassifyResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    PictureFamily,
    Tensors,
    class_ids,
    image_input,
    label_of,
    picture_shape,
)
from visionpool_server.families.scores import Activation, activation_of, as_scores, finite, still_to_do, vector_output
from visionpool_server.imaging.recipe import CenterCrop, Geometry, Recipe, ResizeShort


class Classification(PictureFamily):
    """Output (N, classes), (N, classes, 1, 1) or (N, 1, 1, classes).

    `activation`: what is applied to it, None where each picture's values decide. `multi_label`: any number of classes may
    hold, each that scores over .5 unless told otherwise; so it is of a model with one class. `default_class`: what a picture
    is of where no other class scores over the threshold (PaddleClas' ThreshOutput); the result is then one class.
    """

    activation: Activation | None
    accepts = frozenset({"top_k", "score_threshold", "classes", "activation", "multi_label", "default_class", "output"})
    usual = Options(top_k=5)
    usual_of_many = Options(score_threshold=0.5)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        self.recipe = spec.recipe or _usual_recipe(spec, fixed)
        self._output, self.class_count = vector_output(spec)
        self.labels = spec.labels
        ending = spec.endings.get(self._output, "")
        said = cast(Activation | None, spec.settings.get("activation"))
        alone = self.class_count == 1 and "softmax" not in (said, ending)  # its share of all would always be 1
        self.multi_label: bool = spec.settings.get("multi_label", alone or "sigmoid" in (said, ending))
        self.activation = still_to_do(said, ending, "sigmoid" if self.multi_label else "softmax")
        self.default_class: int | None = spec.settings.get("default_class")
        if self.default_class is not None and self.class_count and self.default_class >= self.class_count:
            raise InvalidModel(
                f"postprocess.default_class is {self.default_class}, and the model has {self.class_count} classes",
                hint="ids start at 0",
            )
        self.defaults = spec.defaults.over(self.usual_of_many if self.multi_label else self.usual)

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> ClassifyResult:  # noqa: ARG002  a protocol's signature
        """The `top_k` best classes over `score_threshold`, of those in `classes`."""
        chosen = options.over(self.defaults)
        scores = finite(self._scores(outputs[self._output].reshape(-1)))
        wanted = class_ids(chosen.classes, self.labels, len(scores)) if chosen.classes else range(len(scores))
        ids = np.array(wanted, np.intp)
        if self.default_class is not None:
            best = np.intersect1d(ids, _decided(scores, chosen.score_threshold or 0.0, self.default_class))
        else:
            best = ids[highest(scores[ids], chosen.top_k or len(ids))]
            if chosen.score_threshold is not None:
                best = best[scores[best] > chosen.score_threshold]
        kept = best.tolist()
        return ClassifyResult(
            label_ids=tuple(kept),
            scores=tuple(np.round(scores[best].astype(np.float64), 6).tolist()),
            labels=tuple(label_of(self.labels, i) for i in kept),
        )

    def _scores(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        values = values.astype(np.float32, copy=False)
        if self.activation is not None:
            return as_scores(values, self.activation)
        return as_scores(values, activation_of(values)) if self.multi_label else probabilities(values)


def _usual_recipe(spec: FamilySpec, fixed: tuple[int, int] | None) -> Recipe:
    """Ultralytics' way, where an export or model.yaml says `input_size`. Otherwise nothing tells how pictures are prepared,
    and a model that is fed wrongly answers nonsense without a word."""
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


def _decided(scores: NDArray[np.float32], threshold: float, default: int) -> int:
    """PaddleClas' ThreshOutput: of two classes the other one from `threshold` on, of more the best one over it."""
    if len(scores) == 2:
        other = 1 - default
        return other if scores[other] >= threshold else default
    best = int(scores.argmax())
    return best if scores[best] > threshold else default


def highest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The indices of the `count` highest scores, best first; of equal ones the first first. Sorts no more than it must."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.nonzero(scores >= least)[0]
    return candidates[np.argsort(-scores[candidates], kind="stable")[:count]]


def probabilities(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """`scores` (classes,), through softmax unless they are a distribution already (none negative, their sum 1)."""
    distribution = scores.min() >= 0 and abs(float(scores.sum()) - 1) < 1e-2
    return scores if distribution else as_scores(scores, "softmax")
