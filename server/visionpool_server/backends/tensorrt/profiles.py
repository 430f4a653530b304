"""For which shapes an engine is built: TensorRT's optimisation profiles, from what the file, model.yaml and the recipe say.

A model of fixed shapes needs none. A batch that is open goes from one to `max_batch_size`; other open dimensions have to be
known from the recipe (the picture's size), `runtime.shapes` or `runtime.profiles`: guessed, they would fail at the first request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visionpool.errors import InvalidModel

from visionpool_server.backends import ImageInput, LoadOptions, ShapeRange, TensorSpec
from visionpool_server.backends.tensorrt.messages import profile_example

Profile = Mapping[str, ShapeRange]  # by input, of all that the file does not fix
Shape = tuple[int | None, ...]
_USUAL_BATCH = 8  # at most, on GPUs, where nobody says another


@dataclass(frozen=True, slots=True)
class Profiles:
    """`each`: empty for a model of fixed shapes. `batch`: the least, the usual and the largest one of all profiles."""

    each: tuple[Profile, ...]
    batch: tuple[int, int, int]


def profiles_of(inputs: Sequence[TensorSpec], options: LoadOptions) -> Profiles:
    """Raises InvalidModel that says what to write where a dimension stays open, or where something does not agree."""
    fixed = {spec.name: _fixed(spec, options) for spec in inputs}
    dynamic = [spec.name for spec in inputs if None in (spec.shape or ())]
    if options.profiles and dynamic:
        each = tuple(_said(profile, fixed, dynamic, options) for profile in options.profiles)
        batch = _span(each, options)
        _check_batches(each, options)
        return Profiles(each, batch)
    if options.profiles:
        _refuse_unknown(options.profiles[0], fixed)
        raise InvalidModel("runtime.profiles: the file fixes all shapes", hint="leave it out of model.yaml")
    batch = _batches(fixed, options)
    shapes = {name: _sized(name, shape, options.image) for name, shape in fixed.items()}
    profile = {name: _ranged(shapes[name], batch) for name in dynamic}
    if still := {name: shapes[name] for name in dynamic if profile[name] is None}:
        raise InvalidModel(
            f"an engine is built for shapes that are known, and {_list(still)} {'is' if len(still) == 1 else 'are'} open",
            hint=profile_example({name: shapes[name] for name in still}) + ", or fix what is open with runtime.shapes",
        )
    known = {name: shape for name, shape in profile.items() if shape is not None}
    return Profiles((known,) if known else (), batch)


def rows_of(image: ImageInput) -> int:
    """Which dimension of the picture's tensor is its height; the next one is its width."""
    return 2 if image.layout == "NCHW" else 1


def _fixed(spec: TensorSpec, options: LoadOptions) -> Shape:
    """Its shape with what runtime.shapes fixes of it."""
    if spec.shape is None:
        raise InvalidModel(
            f"the file leaves the rank of input {spec.name!r} open, which TensorRT does not take",
            hint="export it with a shape, or say runtime.backend: onnxruntime",
        )
    said = options.shapes.get(spec.name) or (0,) * spec.rank
    if len(said) != spec.rank:
        raise InvalidModel(f"runtime.shapes: {spec.name} has {spec.rank} dimensions, not {len(said)}")
    shape = tuple(size if size > 0 else own for size, own in zip(said, spec.shape, strict=True))
    if any(own not in (None, size) for size, own in zip(shape, spec.shape, strict=True)):
        raise InvalidModel(
            f"runtime.shapes: the file fixes {spec.name} to {_text(spec.shape)}, and not {_text(shape)}",
            hint="export it with dynamic dimensions, or leave it out of runtime.shapes",
        )
    return shape


def _sized(name: str, shape: Shape, image: ImageInput | None) -> Shape:
    """With the size of pictures, where this is what takes them."""
    if image is None or image.name != name or image.size is None or len(shape) < rows_of(image) + 2:
        return shape
    rows = rows_of(image)
    height, width = (own or size for own, size in zip(shape[rows:], image.size, strict=False))
    return (*shape[:rows], height, width, *shape[rows + 2 :])


def _batches(shapes: Mapping[str, Shape], options: LoadOptions) -> tuple[int, int, int]:
    """The least, the usual and the largest batch. Raises InvalidModel where another one is fixed than is asked for."""
    sizes = tuple(sorted(set(options.batch_sizes)))
    asked = max(sizes, default=options.max_batch_size)
    if options.image and options.image.layout == "CHW":
        if (asked or 1) > 1:
            raise InvalidModel("this export works for one picture at a time", hint="say batching.max_batch_size: 1")
        return 1, 1, 1
    fixed = [shape[0] for shape in shapes.values() if shape and shape[0] is not None]
    limit = asked or _USUAL_BATCH
    if not fixed:
        return (sizes[0], sizes[len(sizes) // 2], limit) if sizes else (1, limit, limit)
    size = fixed[0]
    if (options.image or (asked or 1) > 1) and {size} != {*sizes, asked or size}:
        raise InvalidModel(
            f"this export, or runtime.shapes, fixes the batch size to {size}",
            hint=f"export it with a dynamic batch dimension, or say batching.max_batch_size: {size}",
        )
    return (size, size, size) if options.image or len(fixed) == len(shapes) else (1, limit, limit)


def _ranged(shape: Shape, batch: tuple[int, int, int]) -> ShapeRange | None:
    """With each of the batches, where the first dimension is open; None where another one is."""
    known = [size for size in shape if size is not None]
    if len(known) == len(shape):
        return ShapeRange(tuple(known), tuple(known), tuple(known))
    if len(known) + 1 < len(shape) or shape[0] is not None:
        return None
    low, usual, high = ((size, *known) for size in batch)
    return ShapeRange(low, usual, high)


def _said(profile: Profile, fixed: Mapping[str, Shape], dynamic: Sequence[str], options: LoadOptions) -> Profile:
    """An entry of runtime.profiles, with what it leaves out where that follows."""
    _refuse_unknown(profile, fixed)
    for name, said in profile.items():
        _check(name, said, fixed[name], options.image)
    first = next(iter(profile.values()))
    batch = (first.min[0], first.opt[0], first.max[0]) if first.min else (1, 1, 1)
    found = {}
    for name in dynamic:
        ranged = profile.get(name) or _ranged(_sized(name, fixed[name], options.image), batch)
        if ranged is None:
            raise InvalidModel(
                f"runtime.profiles: an entry does not say {name}, which the file leaves open: {_text(fixed[name])}",
                hint=profile_example({name: fixed[name]}),
            )
        found[name] = ranged
    return found


def _refuse_unknown(profile: Profile, fixed: Mapping[str, Shape]) -> None:
    if not profile:
        raise InvalidModel("runtime.profiles: an entry is empty", hint=profile_example(fixed))
    if unknown := [name for name in profile if name not in fixed]:
        raise InvalidModel(
            f"runtime.profiles: there is no input {', '.join(map(repr, unknown))}", hint=f"there are {', '.join(fixed)}"
        )


def _check(name: str, said: ShapeRange, shape: Shape, image: ImageInput | None) -> None:
    """Raises InvalidModel for a range that does not go with what is fixed, or without the pictures that will come."""
    if len(said.min) != len(shape):
        raise InvalidModel(f"runtime.profiles: {name} has {len(shape)} dimensions, not {len(said.min)}")
    for low, high, size in zip(said.min, said.max, shape, strict=True):
        if size is not None and not low == size == high:
            raise InvalidModel(
                f"runtime.profiles: {name} is fixed to {_text(shape)}, and not {_text(said.min)} to {_text(said.max)}",
                hint="say the fixed dimensions as they are",
            )
    for low, high, size in zip(said.min, said.max, _sized(name, shape, image), strict=True):
        if size is not None and not low <= size <= high:
            raise InvalidModel(
                f"runtime.profiles: the pictures come in {_text(_sized(name, shape, image))}, and no shape from "
                f"{_text(said.min)} to {_text(said.max)} is that",
                hint="change the profile, or the size in preprocess",
            )


def _batch_range(profile: Profile, options: LoadOptions) -> tuple[int, int, int]:
    """Of the picture's input, else of the first one; those that the file fixes are in none."""
    image = options.image
    if image and image.layout == "CHW":
        return 1, 1, 1
    said = profile.get(image.name) if image else None
    said = said or next(iter(profile.values()))
    return (said.min[0], said.opt[0], said.max[0]) if said.min else (1, 1, 1)


def _span(each: Sequence[Profile], options: LoadOptions) -> tuple[int, int, int]:
    ranges = [_batch_range(profile, options) for profile in each]
    return min(low for low, _, _ in ranges), ranges[0][1], max(high for _, _, high in ranges)


def _check_batches(each: Sequence[Profile], options: LoadOptions) -> None:
    asked = set(options.batch_sizes) | ({options.max_batch_size} if options.max_batch_size else set())
    ranges = [_batch_range(profile, options) for profile in each]
    for size in sorted(asked):
        if not any(low <= size <= high for low, _, high in ranges):
            there = " or ".join(f"{low} to {high}" for low, _, high in ranges)
            raise InvalidModel(
                f"runtime.profiles: none takes batches of {size}, which batching asks for: they take {there}",
                hint="change batching.max_batch_size and batching.sizes, or the profiles",
            )


def _list(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {_text(shape)}" for name, shape in shapes.items())


def _text(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
