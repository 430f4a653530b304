"""A family by a model's tensors alone. Nothing is guessed that they do not show."""

from __future__ import annotations

from collections.abc import Sequence

from visionpool_server.backends import Signature, TensorSpec
from visionpool_server.families import picture_shape

# What exporters name the outputs of a detector, each with its family.
_NAMED = (
    ({"num_dets", "det_boxes", "det_scores", "det_classes"}, "yolo_end2end"),
    ({"logits", "pred_boxes"}, "rtdetr"),
    ({"pred_logits", "pred_boxes"}, "rtdetr"),
    ({"labels", "dets"}, "rtdetr"),
)
# What the exporters of detectors with one anchor a cell name their one output; the shapes are alike.
_ONE_A_CELL = {"output": "yolox", "outputs": "yolov5"}
_OF_DETR = (91, 92)  # numbers of COCO's classes as DETR counts them; RT-DETR has 80
_QUERIES_OF_DETR = 100
_STRIDES = (4, 8, 16, 32, 64)
_FEW = 1000  # more rows than a graph with NMS gives, where the size of the picture is not known


def guess_family(signature: Signature, classes: int | None) -> str | None:
    """A detector's family by its tensors alone, or None. `classes`: their number, where it is known."""
    outputs = [spec.shape or () for spec in signature.outputs]
    inputs = {spec.name for spec in signature.inputs}
    if "scale_factor" in inputs and sorted(map(len, outputs)) == [1, 2]:
        return "paddle_detection"
    if "scale_factor" in inputs or "im_shape" in inputs:
        return paddle_family(signature)
    if "orig_target_sizes" in inputs:
        return "rtdetr"
    names = {spec.name for spec in signature.outputs}
    for usual, family in _NAMED:
        if names >= usual and len(inputs) == 1:
            return None if is_detr(signature) else family
    if _is_segmenter(signature):
        return "yolo_segmentation"
    if _is_scrfd(outputs):
        return "scrfd"
    rows = [spec for spec in signature.outputs if spec.rank != 5]  # YOLOv7's raw heads stand beside its rows
    if len(rows) == 1 and rows[0].rank == 3 and rows[0].dtype.startswith("float"):
        return _by_rows(signature, rows[0], classes)
    return None


def is_detr(signature: Signature) -> bool:
    """Whether outputs named as RT-DETR's are of DETR, YOLOS, Conditional or Deformable DETR: these are prepared otherwise,
    some end in softmax, and their files do not say so."""
    logits = [spec.shape or () for spec in signature.outputs if spec.name in ("logits", "pred_logits")]
    return any(len(shape) == 3 and (shape[1] == _QUERIES_OF_DETR or shape[2] in _OF_DETR) for shape in logits)


def _is_segmenter(signature: Signature) -> bool:
    """Rows for a YOLO's anchors, and prototypes of masks a quarter of the picture's size. MaskFormer has queries."""
    shapes = sorted((spec.shape or () for spec in signature.outputs), key=len)
    size = fixed_size(signature)
    if size is None or [len(shape) for shape in shapes] != [3, 4]:
        return False
    if max(side or 0 for side in shapes[0][1:]) not in _anchors(signature):
        return False
    quarter, prototypes = (size[0] // 4, size[1] // 4), shapes[1]
    masks = prototypes[1] if prototypes[2:] == quarter else prototypes[3] if prototypes[1:3] == quarter else None
    return masks not in (None, 1)


def _is_scrfd(outputs: Sequence[tuple[int | None, ...]]) -> bool:
    """Scores, box sides and five landmarks, each for three or five strides."""
    last = [shape[-1] for shape in outputs if len(shape) in (2, 3)]
    return len(outputs) in (9, 15) and all(last.count(size) == len(outputs) // 3 for size in (1, 4, 10))


def _by_rows(signature: Signature, output: TensorSpec, classes: int | None) -> str | None:
    """The family of a detector with one output of rows, or of columns, for its anchors."""
    _, middle, last = output.shape or (None, None, None)
    cells = _cells(signature)
    few = middle is not None and middle < (cells or _FEW)
    if last == 6 and few:
        return "yolo_end2end"
    if classes is not None:
        if middle == classes + 4:
            return "yolov8"
        if last == classes + 4 and few:
            return "rtdetr"
        return _with_objectness(signature, output) if last == classes + 5 else None
    if middle is None or last is None or min(middle, last) < 5 or middle == last:
        return None
    if max(middle, last) not in _anchors(signature):
        return None  # a map of a picture, perhaps, or its patches, or steps of a text
    return _with_objectness(signature, output) if middle > last else "yolov8"


def _with_objectness(signature: Signature, output: TensorSpec) -> str | None:
    """YOLOv5 and v7 have three anchors a cell; YOLOX and YOLOv6 one, and only the output's name tells them apart."""
    assert output.shape
    return _ONE_A_CELL.get(output.name) if output.shape[1] in one_a_cell(signature) else "yolov5"


def paddle_family(signature: Signature) -> str:
    """The family of one of PaddleDetection's exports: by what it leaves to do after the graph."""
    shapes = [spec.shape or () for spec in signature.outputs]
    if [len(shape) for shape in shapes] == [1, 1, 1, 3]:
        return "solov2"
    if not shapes or any(len(shape) != 3 for shape in shapes):
        return "paddle_detection"
    if len(shapes) == 1:
        return "ppyoloe"
    if len(shapes) > 2:
        return "picodet"
    boxes, scores = shapes if shapes[0][2] == 4 else shapes[::-1]
    queries = scores[1] == boxes[1] and scores[2] != boxes[1]
    return "rtdetr" if queries and boxes[1] is not None else "ppyoloe"


def one_a_cell(signature: Signature) -> tuple[int, ...]:
    """How many cells the grids of strides 8, 16 and 32 have together on the model's picture, and with stride 64."""
    size = fixed_size(signature)
    if size is None:
        return ()
    three = sum((size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32))
    return three, three + (size[0] // 64) * (size[1] // 64)


def _anchors(signature: Signature) -> set[int]:
    """How many anchors a YOLO may have on the model's picture: one or three for each cell of neighbouring strides."""
    size = fixed_size(signature)
    if size is None:
        return set()
    grids = [(size[0] // stride) * (size[1] // stride) for stride in _STRIDES]
    runs = [sum(grids[first:end]) for first in range(3) for end in range(first + 1, len(grids) + 1)]
    return {count * times for count in runs for times in (1, 3)}


def _cells(signature: Signature) -> int:
    """How many cells the finest grid, of stride 8, has on the model's picture; 0 where its size is open."""
    height, width = fixed_size(signature) or (0, 0)
    return (height // 8) * (width // 8)


def fixed_size(signature: Signature) -> tuple[int, int] | None:
    """(height, width) of the one picture input, where the file fixes them."""
    sizes = [picture_shape(spec.shape).size for spec in signature.inputs if spec.shape and spec.rank == 4]
    return sizes[0] if len(sizes) == 1 else None
