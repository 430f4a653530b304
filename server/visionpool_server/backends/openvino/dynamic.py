"""Inputs whose shape stays open on a device that wants it fixed: a model compiled for each shape that comes, and advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import openvino as ov

from visionpool_server.backends import LoadOptions
from visionpool_server.backends.openvino.devices import compile_model, place
from visionpool_server.backends.openvino.files import Names
from visionpool_server.backends.openvino.shape_cache import Shape
from visionpool_server.backends.openvino.shapes import shaped

_SIDE = 640  # of a picture whose size nothing tells


def is_dynamic(model: ov.Model) -> bool:
    return any(port.partial_shape.is_dynamic for port in model.inputs)


def compiled_for(model: ov.Model, names: Names, shape: Shape, options: LoadOptions) -> ov.CompiledModel:
    """For inputs of this very shape; a picture's is (N, H, W, C), as it comes. Raises InvalidModel."""
    fixed: dict[str, tuple[int, ...]] = dict(zip(names.inputs, shape, strict=True))
    image, first = options.image, None
    if image:
        rows, height, width, _ = fixed.pop(image.name)
        image, first = replace(image, size=(height, width)), ov.Dimension(rows)
    its_own = replace(options, image=image, shapes={**options.shapes, **fixed})
    made = shaped(model.clone(), names, first, its_own)
    place(made, options)
    return compile_model(made, options)


def with_guesses(model: ov.Model, names: Names, options: LoadOptions) -> ov.Model:
    """`model`, as `shaped` left it, with values for what it left open: an example of what will come."""
    guesses = _guesses(model, names, options, picture_rows=1)
    model.reshape({names.inputs.index(name): ov.PartialShape(list(shape)) for name, shape in guesses.items()})
    return model


def how_to_fix(model: ov.Model, left: ov.Model, names: Names, options: LoadOptions) -> str:
    """What to write in model.yaml for inputs of `model`, as it is in its file, that are open in `left` by `shaped`."""
    rows = 1 if options.image and options.image.layout == "NHWC" else 2
    guesses = _guesses(model, names, options, picture_rows=rows)
    still_open = [name for name, port in zip(names.inputs, left.inputs, strict=True) if port.partial_shape.is_dynamic]
    values = {**options.shapes, **{name: guesses[name] for name in still_open if name in guesses}}
    written = ", ".join(f"{name}: {list(shape)}" for name, shape in values.items())
    return (
        f"{', '.join(still_open)}: dynamic, so each new shape is compiled for {options.device} when it first comes, and "
        f"{options.max_shapes} are kept. Faster with fixed ones in model.yaml: runtime: {{shapes: {{{written}}}}}"
    )


def _guesses(
    model: ov.Model, names: Names, options: LoadOptions, *, picture_rows: int
) -> Mapping[str, tuple[int, ...]]:
    """A shape for each dynamic input. `picture_rows`: which dimension of a picture is its height."""
    guesses = {}
    for name, port in zip(names.inputs, model.inputs, strict=True):
        shape, said = port.partial_shape, options.shapes.get(name, ())
        if shape.is_static or shape.rank.is_dynamic:
            continue
        picture = len(shape) == 4 and (options.image is None or options.image.name == name)
        sides = (picture_rows, picture_rows + 1) if picture else ()
        guesses[name] = tuple(
            said[i] if i < len(said) and said[i] > 0 else d.get_length() if d.is_static else _SIDE if i in sides else 1
            for i, d in enumerate(shape)
        )
    return guesses
