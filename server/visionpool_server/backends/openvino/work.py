"""Whether what a model computes follows from its inputs' shapes alone: only then does the size of a request bound it."""

from __future__ import annotations

import re

import openvino as ov

# Trip counts, branches, how many boxes overlap and how large a region is are values. Suppressions have had many names.
_BY_VALUE = re.compile(
    r"Loop|TensorIterator|If|NonZero|Unique|.*(NonMaxSuppression|Nms|NMS|Proposal|DetectionOutput|ROI).*"
)


def follows_from_shapes(model: ov.Model) -> bool:
    """False where the same few bytes may also take long: a trip count, or a size to fill, that an input says.

    Inputs may leave their first dimension open, which bytes count. They do not count others where one of those is 0.
    """
    shapes = {}
    for i, port in enumerate(model.inputs):
        if port.partial_shape.rank.is_dynamic:
            return False
        first, others = list(port.partial_shape)[:1], list(port.partial_shape)[1:]
        if any(size.is_dynamic or not size.get_length() for size in others):
            return False
        shapes[i] = ov.PartialShape([*[size if size.is_static else ov.Dimension(1) for size in first], *others])
    fixed = model.clone()
    try:
        fixed.reshape(shapes)
    except RuntimeError:  # a graph that takes other batches, but not one of 1
        return False
    return not any(_BY_VALUE.fullmatch(node.get_type_name()) or _is_open(node) for node in fixed.get_ops())


def _is_open(node: ov.Node) -> bool:
    """Whether a shape is not known even where those of all inputs are: a value decides it."""
    return any(port.partial_shape.is_dynamic for port in node.outputs())
