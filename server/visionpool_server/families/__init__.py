"""The seam to the kinds of model: a family turns a picture into tensors, and a model's outputs into a result.

A new family is one file here and one line in FAMILIES. Families never import each other, or a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed, InvalidModel, InvalidOption
from visionpool.results import Result

from visionpool_server.imaging.recipe import Decoded, Geometry, Recipe

Tensors = Mapping[str, NDArray[Any]]

FAMILIES = {
    "classification": "visionpool_server.families.classification:Classification",
    "embedding": "visionpool_server.families.embedding:Embedding",
    "yolov5": "visionpool_server.families.yolo:YoloV5",
    "yolov8": "visionpool_server.families.yolo:YoloV8",
    "yolo_end2end": "visionpool_server.families.yolo_end2end:YoloEnd2End",
    "yolox": "visionpool_server.families.yolox:YoloX",
    "yolo_segmentation": "visionpool_server.families.yolo_segmentation:YoloSegmentation",
    "yolo_obb": "visionpool_server.families.yolo_obb:YoloObb",
    "yolo_pose": "visionpool_server.families.yolo_pose:YoloPose",
    "picodet": "visionpool_server.families.picodet:PicoDet",
    "ppyoloe": "visionpool_server.families.ppyoloe:PpYoloe",
    "paddle_detection": "visionpool_server.families.paddle_detection:PaddleDetection",
    "rtdetr": "visionpool_server.families.rtdetr:RtDetr",
    "rcnn": "visionpool_server.families.rcnn:Rcnn",
    "solov2": "visionpool_server.families.solov2:SoloV2",
    "segmentation": "visionpool_server.families.segmentation:Segmentation",
    "matting": "visionpool_server.families.matting:Matting",
    "yolov5_face": "visionpool_server.families.yolov5_face:YoloV5Face",
    "scrfd": "visionpool_server.families.scrfd:Scrfd",
    "ocr_detection": "visionpool_server.families.ocr_detection:OcrDetection",
    "ocr_direction": "visionpool_server.families.ocr_direction:OcrDirection",
    "ocr_recognition": "visionpool_server.families.ocr_recognition:OcrRecognition",
}
ALIASES = {"yolo": "yolov8", "yolov11": "yolov8", "yolo11": "yolov8", "yolov6": "yolov5", "yolov7": "yolov5"}
_OTHER_TASKS = {
    "classification": "classification",
    "embedding": "embedding",
    "yolo_pose": "keypoints",
    "segmentation": "segmentation",
    "matting": "segmentation",
    "yolov5_face": "faces",
    "scrfd": "faces",
    "ocr_detection": "ocr",
    "ocr_direction": "classification",
    "ocr_recognition": "ocr",
}
TASKS = {family: _OTHER_TASKS.get(family, "detection") for family in FAMILIES}


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may ask of one prediction. None: what the model says, or else the family's default."""

    score_threshold: float | None = None
    iou_threshold: float | None = None
    top_k: int | None = None
    max_detections: int | None = None
    classes: tuple[str, ...] = ()  # names or ids; empty: all
    compact: bool | None = None  # masks and maps in a compact form instead of a number a pixel
    score_map: bool | None = None  # segmentation: the score of each pixel too

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))

    def given(self) -> dict[str, Any]:
        """What is not left open, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value not in (None, ())}

    def over(self, default: Options) -> Options:
        """These options, with the gaps filled from `default`."""
        return default if self is NO_OPTIONS else replace(default, **self.given())


NO_OPTIONS = Options()
MAX_CLASSES = 1_000_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture as the engine takes it (tensors without their batch dimension) and the way back."""

    tensors: Tensors
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """What a family is built from: the model's tensors, and what its files and model.yaml say."""

    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, tuple[int | None, ...]]
    labels: tuple[str, ...] = ()
    input_size: tuple[int, int] | None = None  # (height, width) that the files ask for
    recipe: Recipe | None = None  # where model.yaml or a Paddle config gives the preprocessing
    defaults: Options = NO_OPTIONS
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else `postprocess` says: the family's own
    dtypes: Mapping[str, str] = field(default_factory=dict)  # of inputs and outputs, as backends name them
    endings: Mapping[str, str] = field(default_factory=dict)  # of outputs whose last operator tells what they are


class Family(Protocol):
    """One kind of model. Its methods are pure, and run on any thread."""

    recipe: Recipe
    image_input: str
    labels: tuple[str, ...]
    class_count: int | None  # None: the model's tensors do not say
    accepts: frozenset[str]  # the options that mean something to it
    defaults: Options  # what holds where a caller says nothing
    activation: str | None  # applied to its outputs; None: as each picture's values look; "": that is no question here
    resizes: bool  # whether its pictures are of a size of its own, whatever the file fixes
    one_at_a_time: bool  # whether the outputs of several pictures could not be told apart

    def prepare(self, image: Decoded, geometry: Geometry | None = None) -> Prepared:
        """`geometry`: where the original lies in `image`, if it was decoded smaller."""

    def split(self, outputs: Tensors, count: int) -> Sequence[Tensors]:
        """The outputs of each of the `count` pictures of a batch."""

    def join(self, parts: Sequence[Tensors]) -> Tensors:
        """The inverse of `split`: the outputs of some pictures as those of one batch."""

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> Result: ...


class PictureFamily:
    """What most families do alike: the recipe makes the one input, and row i of each output belongs to picture i."""

    recipe: Recipe
    image_input: str
    labels: tuple[str, ...]
    class_count: int | None
    defaults: Options
    activation: str | None = ""
    resizes = False
    one_at_a_time = False

    def prepare(self, image: Decoded, geometry: Geometry | None = None) -> Prepared:
        prepared, geometry = self.recipe.prepare(image, geometry)
        return Prepared({self.image_input: prepared, **self.beside(geometry)}, geometry)

    def beside(self, geometry: Geometry) -> Tensors:  # noqa: ARG002  families override it
        """What the graph takes of a picture beside the picture."""
        return {}

    def split(self, outputs: Tensors, count: int) -> Sequence[Tensors]:
        return _alone(outputs, count) if self.one_at_a_time else split_by_row(outputs, count)

    def join(self, parts: Sequence[Tensors]) -> Tensors:
        return _alone(parts[0], len(parts))[0] if self.one_at_a_time else join_rows(parts)


def _alone(outputs: Tensors, count: int) -> list[Tensors]:
    """The outputs of one picture that have no batch dimension. Raises InferenceFailed for those of several."""
    if count != 1:
        raise InferenceFailed(
            f"the outputs of {count} pictures have no batch dimension, so nobody can tell whose they are",
            hint="the model's operator should say batching.max_batch_size: 1",
        )
    return [outputs]


def split_by_row(outputs: Tensors, count: int) -> list[Tensors]:
    """The usual split: row i of each output belongs to picture i."""
    return [{name: value[i] for name, value in outputs.items()} for i in range(count)]


def join_rows(parts: Sequence[Tensors]) -> Tensors:
    """The inverse of `split_by_row`."""
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def canonical(family: str) -> str:
    """The registered name of a family. Raises InvalidModel for an unknown one."""
    name = ALIASES.get(family, family)
    if name not in FAMILIES:
        raise InvalidModel(f"unknown family {family!r}", hint=f"known: {', '.join([*FAMILIES, *ALIASES])}")
    return name


def build_family(name: str, spec: FamilySpec) -> Family:
    """The family of this name for one model. Raises InvalidModel where the model's tensors do not fit it."""
    module, _, attribute = FAMILIES[canonical(name)].partition(":")
    build = cast(Callable[[FamilySpec], Family], getattr(import_module(module), attribute))
    return build(spec)


def class_ids(classes: Sequence[str], labels: Sequence[str], count: int | None) -> list[int]:
    """The ids of classes given by name or number, each once. `count`: how many the model has, where it is known.

    Raises InvalidOption for one that the model does not have.
    """
    limit = count if count is not None else len(labels) or MAX_CLASSES
    ids = []
    for item in classes:
        if item in labels:
            ids.append(labels.index(item))
        elif item.isdecimal() and len(item) < 10 and int(item) < limit:
            ids.append(int(item))
        else:
            raise InvalidOption(
                f"the model has no class {item[:80]!r}", hint="GET /v1/models/{model} lists its labels; ids start at 0"
            )
    return list(dict.fromkeys(ids))


def numbered(count: int | None) -> tuple[str, ...]:
    """Labels for a model that names none: the ids themselves."""
    return tuple(str(i) for i in range(count or 0))


def label_of(labels: Sequence[str], index: int) -> str:
    """The label of a class, or its number where the model names none."""
    return labels[index] if index < len(labels) else str(index)


def image_input(spec: FamilySpec) -> tuple[str, tuple[int, int] | None]:
    """The name of the input that takes the picture, and its (height, width) where the file fixes them."""
    pictures = {name: shape for name, shape in spec.inputs.items() if len(shape) == 4}
    if len(pictures) != 1:
        raise InvalidModel(
            f"a vision model has one 4-D picture input; this one has {len(pictures)}: {dict(spec.inputs)}",
            hint="check the file",
        )
    name, shape = next(iter(pictures.items()))
    return name, picture_shape(shape).size


@dataclass(frozen=True, slots=True)
class PictureShape:
    """How an input takes a picture. `size`: (height, width) where the file fixes both."""

    layout: Literal["NCHW", "NHWC", "CHW"]
    size: tuple[int, int] | None
    channels: int | None


def picture_shape(shape: Sequence[int | None]) -> PictureShape:
    """`shape` of four dimensions: the channels are where a 1 or a 3 stands, first where both could be. Of three: CHW."""
    if len(shape) == 3:
        return PictureShape("CHW", (shape[1], shape[2]) if shape[1] and shape[2] else None, shape[0])
    last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    height, width = shape[1:3] if last else shape[2:4]
    return PictureShape(
        "NHWC" if last else "NCHW",
        (height, width) if height and width else None,
        shape[3] if last else shape[1],
    )
