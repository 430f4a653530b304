"""What is fixed before compiling: the batch, dimensions that model.yaml names, the picture's size and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from openvino.preprocess import PrePostProcessor
from visionpool.errors import InvalidModel

from visionpool_server.backends import ImageInput, LoadOptions
from visionpool_server.backends.openvino.files import Names, reason

_GPU_BATCH_SIZES = (1, 2, 4, 8)
_OV_LIMIT = 2**31 - 1  # a dimension whose upper bound is not known


@dataclass(frozen=True, slots=True)
class Plan:
    """Whether rows of requests are joined, up to how many, and the fixed `sizes` to compile for: none is one dynamic."""

    batched: bool
    sizes: tuple[int, ...]
    limit: int


def plan(model: ov.Model, names: Names, options: LoadOptions) -> Plan:
    """Raises InvalidModel where model.yaml asks for batches, and the graph does not take them."""
    if options.image is None:
        return _plan_plain(model, names, options)
    sizes = _batch_sizes(model, names, options)
    return Plan(True, sizes, max(sizes) if sizes else options.max_batch_size or 1)


def _plan_plain(model: ov.Model, names: Names, options: LoadOptions) -> Plan:
    """Nobody knows what the model's own tensors mean: nothing is joined that model.yaml does not ask for."""
    if max(options.batch_sizes, default=options.max_batch_size or 1) > 1:
        sizes = _batch_sizes(model, names, options)
        return Plan(True, sizes, max(sizes) if sizes else options.max_batch_size or 1)
    shapes = [_input_shape(name, model.input(i).partial_shape, None, options) for i, name in enumerate(names.inputs)]
    firsts = {_first(shape) for shape in shapes}
    if firsts not in ({None}, {1}) or not all(_follows(model, names, options, size) for size in (2, 3)):
        return Plan(False, (), 1)
    asked = options.max_batch_size or options.batch_sizes
    several = names.inputs if len(names.inputs) > 1 else ()
    if not asked and any(_stands_alone(model, names, options, name) for name in several):
        return Plan(False, (), 1)
    return Plan(True, (1,) if firsts == {1} or options.batch_sizes else (), 1)


def _first(shape: ov.PartialShape) -> int | None:
    """The first dimension; None for a dynamic one, 0 where there is none."""
    if shape.rank.is_dynamic or not len(shape):
        return 0
    return int(shape[0].get_length()) if shape[0].is_static else None


def _follows(model: ov.Model, names: Names, options: LoadOptions, size: int, *, sure: bool = True) -> bool:
    """Whether a batch of `size` is the first dimension of all outputs, and shows in no other.

    `sure` False: also where the graph leaves an output's first dimension open.
    """
    try:
        small, large = (_shaped_outputs(model, names, options, rows) for rows in (size, size + 5))
    except InvalidModel:
        return False
    return all(
        ((_first(a), _first(b)) == (size, size + 5) or (not sure and _first(a) is None)) and list(a)[1:] == list(b)[1:]
        for a, b in zip(small, large, strict=True)
    )


def _stands_alone(model: ov.Model, names: Names, options: LoadOptions, lone: str) -> bool:
    """Whether an input's first dimension may be another than that of the others, which then is no batch.

    By 2 and 3, since 1 would be taken for any size where inputs are added, say.
    """
    shapes = {
        i: _input_shape(name, model.input(i).partial_shape, ov.Dimension(3 if name == lone else 2), options)
        for i, name in enumerate(names.inputs)
    }
    try:
        model.clone().reshape(shapes)
    except RuntimeError:
        return False
    return True


def _shaped_outputs(model: ov.Model, names: Names, options: LoadOptions, rows: int) -> list[ov.PartialShape]:
    shaped_model = shaped(model.clone(), names, ov.Dimension(rows), options)
    return [port.partial_shape for port in shaped_model.outputs]


def _batch_sizes(model: ov.Model, names: Names, options: LoadOptions) -> tuple[int, ...]:
    """The fixed sizes to compile for; empty for one dynamic size. Devices other than the CPU want fixed ones."""
    limit = options.max_batch_size
    if options.batch_sizes:
        wanted: tuple[int, ...] = tuple(sorted(set(options.batch_sizes)))
    elif options.device == "CPU":
        wanted = (1,) if limit in (None, 1) else ()
    else:
        wanted = tuple(sorted({size for size in _GPU_BATCH_SIZES if size <= (limit or 8)} | {limit or 1}))
    if wanted == (1,) or _takes_batches(model, names, options, max(wanted or (limit or 1,))):
        return wanted
    if limit is None and not options.batch_sizes:
        return (1,)  # the export fixed its batch: nobody asked for more
    shaped(model.clone(), names, ov.Dimension(1), options)  # where that fails too, it is not for the batch
    what = "picture" if options.image else "row"
    raise InvalidModel(
        f"this export works for one {what} at a time: its graph fixes the batch size",
        hint="export it with a dynamic batch dimension, or say batching.max_batch_size: 1",
    )


def _takes_batches(model: ov.Model, names: Names, options: LoadOptions, size: int) -> bool:
    if options.image is None:
        has_rows = all(_first(port.partial_shape) != 0 for port in model.inputs)
        return has_rows and _follows(model, names, options, size, sure=False)
    try:
        outputs = _shaped_outputs(model, names, options, size)
    except InvalidModel:
        return False
    first = _first(outputs[0])
    return first is None or outputs[0].rank.is_dynamic or first % size == 0


def shaped(model: ov.Model, names: Names, first: ov.Dimension | None, options: LoadOptions) -> ov.Model:
    """`model` with its batch, its picture's size and the `shapes` fixed, and the arithmetic compiled in.

    `first`: the first dimension of all inputs; None leaves it.
    """
    image = options.image
    if image and image.layout == "CHW":
        _give_batch(model, names.inputs.index(image.name))
    shapes = {
        i: _input_shape(name, model.input(i).partial_shape, first, options) for i, name in enumerate(names.inputs)
    }
    try:
        model.reshape(shapes)
    except RuntimeError as error:
        raise InvalidModel(
            f"the model does not take the shapes {[str(shape) for shape in shapes.values()]}: {reason(error)}",
            hint="check runtime.shapes in model.yaml",
        ) from error
    return _with_arithmetic(model, names.inputs.index(image.name), image) if image else model


def first_dimension(size: int | None, planned: Plan, options: LoadOptions) -> ov.Dimension | None:
    """What `shaped` takes as `first` for a fixed size, or None for the dynamic one."""
    if not planned.batched:
        return None
    if size:
        return ov.Dimension(size)
    return ov.Dimension(1, options.max_batch_size or _OV_LIMIT) if options.image else ov.Dimension.dynamic()


def _input_shape(
    name: str, shape: ov.PartialShape, first: ov.Dimension | None, options: LoadOptions
) -> ov.PartialShape:
    fixed = options.shapes.get(name)
    image = options.image
    if fixed and image and image.name == name and image.layout == "CHW":
        fixed = (1, *fixed)
    if shape.rank.is_dynamic:
        return ov.PartialShape([size if size > 0 else -1 for size in fixed]) if fixed else shape
    dimensions = list(shape)
    if fixed:
        if len(fixed) != len(dimensions):
            raise InvalidModel(
                f"runtime.shapes gives {name!r} {len(fixed)} dimensions, the model has {len(dimensions)}: {shape}"
            )
        dimensions = [ov.Dimension(value) if value > 0 else d for value, d in zip(fixed, dimensions, strict=True)]
    if image and image.name == name and image.size:
        rows = 1 if image.layout == "NHWC" else 2
        dimensions[rows], dimensions[rows + 1] = map(ov.Dimension, image.size)
    if dimensions and first is not None:
        dimensions[0] = first
    return ov.PartialShape(dimensions)


def _give_batch(model: ov.Model, index: int) -> None:
    """Input (C, H, W) becomes (1, C, H, W): the graph takes the first dimension off again."""
    old = model.get_parameters()[index]
    if old.partial_shape.rank.is_static and len(old.partial_shape) == 4:
        return
    new = ops.parameter(ov.PartialShape([1, *old.partial_shape]), old.element_type, old.friendly_name)
    picture = ops.squeeze(new, ops.constant([0], np.int64))
    for target in old.output(0).get_target_inputs():
        target.replace_source_output(picture.output(0))
    model.replace_parameter(index, new)
    model.validate_nodes_and_infer_types()


def _backwards(picture: ov.Output) -> ov.Output:
    """RGB as BGR, channels last. OpenVINO's own `reverse_channels` is merged into the weights of the first convolution, and
    gets lost without a word where the graph reads the shape of its input besides, as that of a recurrent network does."""
    return ops.slice(picture, [-1], [-_OV_LIMIT], [-1], [-1]).output(0)


def _with_arithmetic(model: ov.Model, index: int, image: ImageInput) -> ov.Model:
    """Takes uint8 NHWC RGB: `(x * scale - mean) / std` is `(x - mean / scale) / (std / scale)` here."""
    arithmetic = image.arithmetic
    processor = PrePostProcessor(model)
    picture = processor.input(index)
    picture.tensor().set_element_type(ov.Type.u8 if image.dtype == "uint8" else ov.Type.f32).set_layout(
        ov.Layout("NHWC")
    )
    picture.model().set_layout(ov.Layout("NHWC" if image.layout == "NHWC" else "NCHW"))
    steps = picture.preprocess()
    if arithmetic.channels == "bgr":
        steps.custom(_backwards)
    steps.convert_element_type(ov.Type.f32)
    if any(arithmetic.mean):
        steps.mean([value / arithmetic.scale for value in arithmetic.mean])
    steps.scale([value / arithmetic.scale for value in arithmetic.std])
    try:
        return processor.build()
    except RuntimeError as error:
        raise InvalidModel(
            f"the input {image.name!r} does not take a picture as prepared: {reason(error)}",
            hint="check preprocess and runtime.shapes in model.yaml against the model's input",
        ) from error
