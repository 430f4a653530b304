"""What to write in a model.yaml, by what a model's outputs look like."""

from __future__ import annotations

from visionpool_server.backends import Signature
from visionpool_server.families import TASKS, picture_shape
from visionpool_server.models.guess import is_detr, one_a_cell

_QUERIES = (100, 300, 900)  # what detection transformers have
_CLASSIFIER = (
    "if it is a classifier, write a model.yaml beside it: {{task: classification, labels: FILE, preprocess: {steps}}}"
)
_IMAGENET = "{normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}"
_PICODET = "if it is a PicoDet, write a model.yaml beside it: {task: detection, family: picodet, labels: FILE}"
_TRANSFORMER = "if it is an RT-DETR, write a model.yaml beside it: {family: rtdetr, labels: FILE}"
_DETR = (
    "if it is a DETR or a YOLOS, write a model.yaml beside it: {family: rtdetr, labels: FILE, postprocess: {activation: "
    "softmax}, preprocess: [{resize: [800, 1066]}, {normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}]}; "
    "for a Conditional or Deformable DETR say activation: sigmoid"
)
_BOXES_AND_SCORES = (
    f"{_TRANSFORMER}; if it is a PP-YOLOE without NMS, put its infer_cfg.yml beside it, or write {{family: ppyoloe, "
    "labels: FILE, preprocess: [{resize: {size: 640, interpolation: cubic}}, normalize]}"
)
_ONE_A_CELL = (
    "if it is a YOLOX, write a model.yaml beside it: {family: yolox, labels: FILE}; if it is a YOLOv6, {family: yolov6, "
    "labels: FILE}"
)
_RAW_HEADS = (
    "these are the raw heads of a YOLOv5 or YOLOv7: export it with its grid (export.py --grid), so that it has one output of "
    "(pictures, anchors, 5 + classes)"
)
_PACKED = "if it is a YOLOv7 with NMS inside, write a model.yaml beside it: {family: yolo_end2end, labels: FILE}"
_SEGMENTATION = (
    "if it says a class for every pixel, write a model.yaml beside it: {family: segmentation, labels: FILE, preprocess: "
    "[{resize: [512, 512]}, {normalize: {mean: 0.5, std: 0.5}}]}"
)
_RCNN = (
    "if it is a Faster or Mask R-CNN, write a model.yaml beside it: {family: rcnn, labels: FILE}; for the ONNX model zoo's add "
    "preprocess: [{resize_short: 800}, {pad_to_stride: 32}, {normalize: {scale: 1.0, mean: [102.9801, 115.9465, 122.7717], "
    "std: [1, 1, 1], channels: bgr}}]"
)
_SCRFD = "if it is an SCRFD without landmarks, write a model.yaml beside it: {family: scrfd}"
_YOLO = "if it is a YOLO detector, write a model.yaml beside it: {family: yolov8, labels: FILE} (or yolov5)"
_READER = "if it reads lines of text (PP-OCR), write a model.yaml beside it: {task: ocr, labels: FILE}"
_TEXT_DETECTOR = (
    "if it is a text detector (PP-OCR), write a model.yaml beside it: {task: ocr}; the same in the folder above, with a "
    "recogniser's folder beside, serves the two as one"
)


def advice(signature: Signature) -> str | None:
    """None for a model that takes no picture, or whose outputs look like nothing that is served."""
    if sorted(spec.rank for spec in signature.outputs) in ([1, 1, 2], [1, 1, 2, 4]) and len(signature.inputs) == 1:
        return _RCNN
    pictures = [spec.shape for spec in signature.inputs if spec.shape and spec.rank == 4]
    if len(pictures) != 1 or picture_shape(pictures[0]).channels not in (1, 3, None):
        return None
    shapes = [spec.shape or () for spec in signature.outputs]
    ranks = [len(shape) for shape in shapes]
    if ranks == [2]:
        classifier = _classifier(pictures[0])
        return f"{_PACKED}; {classifier}" if shapes[0][1] == 7 and shapes[0][0] is None else classifier
    if ranks == [3]:
        return _READER if _any_width(pictures[0]) else _of_rows(signature, shapes[0][1])
    if ranks == [4]:
        return f"{_TEXT_DETECTOR}; {_SEGMENTATION}" if shapes[0][1] == 1 else _SEGMENTATION
    last = [shape[-1:] for shape in shapes]
    if (len(last), last.count((1,)), last.count((4,))) == (6, 3, 3):
        return _SCRFD
    if is_detr(signature):
        return _DETR
    if len(ranks) > 1 and set(ranks) == {3}:
        return _BOXES_AND_SCORES if len(ranks) == 2 and 4 in (shapes[0][2], shapes[1][2]) else _PICODET
    return raw_heads(signature) or (_TRANSFORMER if sorted(ranks) == [2, 2, 3] else None)


def _classifier(picture: tuple[int | None, ...]) -> str:
    """As ImageNet's are used, at the size of the model; small grey pictures as MNIST's."""
    height, width = _sides(picture)
    if picture_shape(picture).channels == 1:
        steps = f"[{{resize: [{height or 28}, {width or 28}]}}, normalize]"
    elif height != width:
        steps = f"[{{resize: [{height or 224}, {width or 224}]}}, {_IMAGENET}]"
    else:
        side = height or 224
        steps = f"[{{resize_short: {round(side * 256 / 224)}}}, {{center_crop: {side}}}, {_IMAGENET}]"
    return _CLASSIFIER.format(steps=steps)


def _any_width(picture: tuple[int | None, ...]) -> bool:
    """Whether it takes pictures of a fixed height and any width, which lines of text have."""
    height, width = _sides(picture)
    return height is not None and width is None


def _sides(picture: tuple[int | None, ...]) -> tuple[int | None, int | None]:
    """(height, width), where they are fixed."""
    height, width = picture[2:] if picture_shape(picture).layout == "NCHW" else picture[1:3]
    return height, width


def _of_rows(signature: Signature, rows: int | None) -> str:
    """`rows`: of the one output (pictures, rows, columns)."""
    if rows is not None and rows in one_a_cell(signature):
        return _ONE_A_CELL
    return _TRANSFORMER if rows in _QUERIES else _YOLO


def raw_heads(signature: Signature) -> str | None:
    """What to do about a YOLO whose outputs are (pictures, anchors a cell, rows, columns, 5 + classes) for each stride."""
    five = [spec for spec in signature.outputs if spec.rank == 5]
    return _RAW_HEADS if five and len(five) == len(signature.outputs) else None


def hint(signature: Signature) -> str:
    """The advice, or what is served at all."""
    shapes = ", ".join("any" if spec.shape is None else str(list(spec.shape)) for spec in signature.outputs)
    served = ", ".join(sorted({*TASKS.values(), "tensor"}))
    return (
        advice(signature) or f"its outputs are {shapes}; say family:, or task: tensor for its plain tensors ({served})"
    )
