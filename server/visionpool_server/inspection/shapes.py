"""What to fix dynamic inputs to: GPUs and NPUs want fixed shapes, and arithmetic can only be counted at one."""

from __future__ import annotations

import numpy as np

from visionpool_server.backends import TensorSpec
from visionpool_server.families import Family, picture_shape
from visionpool_server.imaging.unprepared import size_of
from visionpool_server.inspection.identity import Identified
from visionpool_server.inspection.report import ShapeProposal
from visionpool_server.models.lines import line_of

Value = tuple[int, str, bool]  # a size, who says so, and whether it is a guess
_EXAMPLE = (480, 640)  # height and width of many a camera's pictures


def proposals(known: Identified) -> tuple[ShapeProposal, ...]:
    """One for each input with a dynamic dimension; none where the very rank is open, unless model.yaml fixes it."""
    found = (_proposal(known, spec) for spec in known.signature.inputs)
    return tuple(proposal for proposal in found if proposal)


def fixed_shapes(known: Identified, proposed: tuple[ShapeProposal, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of each input, with the proposals in place of what is dynamic; without those whose rank is open."""
    fixed = {spec.name: spec.shape for spec in known.signature.inputs if spec.shape is not None}
    shapes = fixed | {proposal.input: proposal.shape for proposal in proposed}
    return {name: tuple(size or 0 for size in shape) for name, shape in shapes.items()}


def widths_of_lines(known: Identified) -> tuple[int, ...]:
    """Those that a reader of lines pads to, where there are several: each is a shape, and none may be the only one."""
    line = line_of(known.family) if known.family else None
    return tuple(sorted(line.widths)) if line and len(line.widths) > 1 else ()


def _proposal(known: Identified, spec: TensorSpec) -> ShapeProposal | None:
    written = known.bundle.runtime.shapes.get(spec.name, ())
    declared = spec.shape if spec.shape is not None else (None,) * len(written)
    if None not in declared:
        return None
    given = [size if size > 0 else None for size in written] or [None] * len(declared)
    values = [
        (size, "", False) if size is not None else (said, "model.yaml", False) if said else _value(known, spec, axis)
        for axis, (size, said) in enumerate(zip(declared, given, strict=True))
    ]
    sources = dict.fromkeys(source for _, source, _ in values if source)
    left = [axis for axis, size in enumerate(declared) if size is None and given[axis] is None]
    return ShapeProposal(
        input=spec.name,
        shape=tuple(size for size, _, _ in values),
        source=", ".join(sources),
        guessed=any(guessed for _, _, guessed in values),
        needed=any(not _fixed_by_server(known, spec, axis) for axis in left),
    )


def _fixed_by_server(known: Identified, spec: TensorSpec, axis: int) -> bool:
    """The batch of a vision model is, and its picture's size where the preprocessing says it, or a few for lines of text."""
    if known.image is None:
        return False
    if known.image.name == spec.name and widths_of_lines(known):
        return True  # with one shape for each
    return axis == 0 or (known.image.name == spec.name and known.image.size is not None and axis in _sides(spec))


def _sides(spec: TensorSpec) -> tuple[int, int]:
    """The axes of height and width."""
    rows = picture_shape(spec.shape or ()).layout.index("H")
    return rows, rows + 1


def _value(known: Identified, spec: TensorSpec, axis: int) -> Value:
    """For one dynamic dimension."""
    if axis == 0:
        return 1, "one picture" if known.image else "one row", False
    if spec.rank != 4 and (known.image is None or known.image.name != spec.name):
        return 1, "a guess", True
    if axis not in _sides(spec):
        return 3, "colours", known.image is None
    if known.image is not None and known.image.name == spec.name:
        return _side(known, axis - _sides(spec)[0])
    size = 224 if [output.rank for output in known.signature.outputs] == [2] else 640
    return size, "a guess", True


def _side(known: Identified, which: int) -> Value:
    """`which`: 0 the height, 1 the width of the picture."""
    assert known.image is not None and known.family is not None
    if known.image.size:
        return known.image.size[which], "the preprocessing", False
    if known.bundle.input_size:
        return known.bundle.input_size[which], "the size that its files name", False
    if widths := widths_of_lines(known):
        line = line_of(known.family)
        assert line is not None
        return (line.height, widths[0])[which], f"the narrowest line of {len(widths)} widths", False
    if known.family.recipe.steps:
        prepared = _prepared(known.family)
        return prepared[which], f"a picture of {_EXAMPLE[1]}x{_EXAMPLE[0]} as preprocessed", True
    return 224 if known.model.task == "classification" else 640, "a guess", True


def _prepared(family: Family) -> tuple[int, int]:
    image, _ = family.recipe.prepare(np.zeros((*_EXAMPLE, 3), np.uint8))
    return size_of(image)
