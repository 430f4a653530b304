"""A class for every pixel: PaddleSeg's exports (argmax, softmax or neither at their end), PP-HumanSeg, PP-LiteSeg, and the
DeepLab, FCN and SegFormer kind from elsewhere. `families/pixel_maps.py` says how a map comes back to the original's size.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import SegmentationResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    Tensors,
    image_input,
    numbered,
    picture_shape,
)
from visionpool_server.families.boxes import Floats
from visionpool_server.families.pixel_maps import ClassMap, MapFamily, highest_classes, restored, result_of
from visionpool_server.families.scores import Activation, activation_of, sigmoid, still_to_do
from visionpool_server.imaging.recipe import Geometry

Kind = Literal["classes", "scores", "foreground"]
_TWO = ("background", "foreground")


class Segmentation(MapFamily):
    """Output, by `kind`: "classes" (N, H, W) or (N, 1, H, W), ids; "scores" (N, C, H, W) or (N, H, W, C); "foreground"
    (N, 1, H, W) or (N, H, W), what one class scores against the background.

    `activation`: what makes probabilities of the scores; None where each picture's values decide.
    """

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        if spec.recipe is None:
            raise InvalidModel(
                "neither the file nor model.yaml says how pictures are prepared for this model",
                hint="for most of PaddleSeg: preprocess: [{resize: [512, 512]}, {normalize: {mean: 0.5, std: 0.5}}]",
            )
        self.recipe = spec.recipe
        self._output = _output_of(spec)
        self.kind, self._channels_last = _kind(spec, self._output, fixed)
        ending = spec.endings.get(self._output, "")
        said = cast(Activation | None, spec.settings.get("activation"))
        self.activation = "none" if self.kind == "classes" else still_to_do(said, ending, self._of_logits)
        self.class_count = self._class_count(spec.outputs[self._output])
        self.labels = spec.labels or (_TWO if self.kind == "foreground" else numbered(self.class_count))
        self.accepts = frozenset({"compact", "output"})
        self.accepts |= frozenset() if self.kind == "classes" else {"score_map", "activation"}
        self.accepts |= {"score_threshold"} if self.kind == "foreground" else frozenset()
        usual = Options(score_threshold=0.5) if self.kind == "foreground" else Options()
        self.defaults = spec.defaults.over(usual)

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> SegmentationResult:
        chosen = options.over(self.defaults)
        values, scored = outputs[self._output], bool(chosen.score_map)
        if self.kind == "classes":
            found = _given(values, geometry)
        elif self.kind == "foreground":
            found = self._foreground(values, geometry, chosen.score_threshold or 0.0)
        else:
            found = self._classified(values, geometry, scored)
        return result_of(found, self.labels, scored=scored, compact=bool(chosen.compact), geometry=geometry)

    def _classified(self, values: NDArray[Any], geometry: Geometry, scored: bool) -> ClassMap:
        planes = np.ascontiguousarray(values.transpose(2, 0, 1) if self._channels_last else values, np.float32)
        activation = self.activation or ("softmax" if activation_of(planes) == "sigmoid" else "none")
        found = highest_classes(planes, geometry, scored=scored, softmax=activation == "softmax")
        if found.scores is not None and activation == "sigmoid":
            return ClassMap(found.classes, sigmoid(found.scores))
        return found

    def _foreground(self, values: NDArray[Any], geometry: Geometry, threshold: float) -> ClassMap:
        plane: Floats = np.ascontiguousarray(values.reshape(_plane(values)), np.float32)
        activation = self.activation or activation_of(plane)
        scores = restored(plane, geometry)
        scores = scores if activation == "none" else sigmoid(scores)
        classes = (scores > threshold).astype(np.uint8)
        return ClassMap(classes, np.where(classes, scores, 1 - scores))

    @property
    def _of_logits(self) -> Activation:
        return "sigmoid" if self.kind == "foreground" else "softmax"

    def _class_count(self, shape: tuple[int | None, ...]) -> int | None:
        if self.kind == "scores":
            return shape[3] if self._channels_last else shape[1]
        return 2 if self.kind == "foreground" else None


def _given(values: NDArray[Any], geometry: Geometry) -> ClassMap:
    """The classes as the graph has decided them. Ids that no picture can have are class 0 (a model's `ignore` of -1, say)."""
    ids = values.reshape(_plane(values))
    wide = bool(ids.size) and int(ids.max()) > np.iinfo(np.uint8).max
    kept = np.clip(ids, 0, np.iinfo(np.uint16).max).astype(np.uint16 if wide else np.uint8)
    return ClassMap(restored(np.ascontiguousarray(kept), geometry, cv2.INTER_NEAREST))


def _plane(values: NDArray[Any]) -> tuple[int, int]:
    """(h, w) of (h, w), (1, h, w) or (h, w, 1)."""
    first, last = values.shape[0] == 1 and values.ndim == 3, values.ndim == 3
    height, width = values.shape[1:] if first else values.shape[:2] if last else values.shape
    return height, width


def _output_of(spec: FamilySpec) -> str:
    """The output with the classes: the one said, or `out` (torchvision's), or the first that is no auxiliary head."""
    said = spec.settings.get("output")
    if said is not None and said not in spec.outputs:
        raise InvalidModel(
            f"postprocess.output is {said!r}, which the model does not have",
            hint=f"there are {', '.join(spec.outputs)}",
        )
    maps = [name for name, shape in spec.outputs.items() if len(shape) in (3, 4)]
    likely = [name for name in maps if not name.startswith("aux")]
    if not maps:
        raise InvalidModel(
            f"a segmentation model has an output of three or four dimensions; this model has {dict(spec.outputs)}",
            hint="check family: in model.yaml",
        )
    return cast(str, said) if said else "out" if "out" in maps else (likely or maps)[0]


def _kind(spec: FamilySpec, output: str, fixed: tuple[int, int] | None) -> tuple[Kind, bool]:
    """What the output has, and whether its channels come last."""
    shape = spec.outputs[output]
    if spec.dtypes.get(output, "float32").startswith(("int", "uint")) or spec.endings.get(output) == "argmax":
        if len(shape) == 4 and 1 not in (shape[1], shape[3]):
            raise InvalidModel(f"output {output!r} has whole numbers, and more than one a pixel: {shape}")
        return "classes", False
    if len(shape) == 3 or 1 in (shape[1], shape[3]):
        return "foreground", False
    return "scores", _channels_last(spec, shape, fixed)


def _channels_last(spec: FamilySpec, shape: tuple[int | None, ...], fixed: tuple[int, int] | None) -> bool:
    """By the number of labels, by the size of the picture, or else as the input has them."""
    if spec.labels and (len(spec.labels) == shape[1]) != (len(spec.labels) == shape[3]):
        return len(spec.labels) == shape[3]
    if fixed and (shape[1:3] == fixed) != (shape[2:4] == fixed):
        return shape[1:3] == fixed
    return any(picture_shape(each).layout == "NHWC" for each in spec.inputs.values() if len(each) == 4)
