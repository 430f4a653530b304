"""Whether the rows of requests can be joined to one batch."""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime as ort
from visionpool.errors import InvalidModel

from visionpool_server.backends import LoadOptions, zeros
from visionpool_server.backends.onnxruntime.context import OnnxRuntimeContext
from visionpool_server.backends.onnxruntime.session import inputs_of, known_shape, size_or


def batching(session: ort.InferenceSession, options: LoadOptions) -> tuple[bool, tuple[int, ...], int]:
    """`batched`, `batch_sizes` and `max_batch_size` of the engine."""
    asked = max(options.batch_sizes, default=options.max_batch_size or 1)
    if options.image and options.image.layout == "CHW":
        return True, (1,), _only_one(asked)
    if options.image is None and asked == 1:
        batched = _joins(session, options)
        return batched, options.batch_sizes if batched else (), 1
    specs = [spec for spec in inputs_of(session) if spec.shape or options.image is None]
    fixed = {spec.shape[0] if spec.shape else 1 for spec in specs} - {None}  # a scalar is one row
    if not fixed and (options.image or _gives_rows(session, options, asked)):
        limit = options.max_batch_size or (1 if options.device == "CPU" else 8)
        return True, tuple(sorted(set(options.batch_sizes))), max(options.batch_sizes or (limit,))
    size = next(iter(fixed)) or 1 if fixed else 1
    if (options.max_batch_size or size) != size or set(options.batch_sizes) - {size}:
        raise InvalidModel(
            f"this export fixes its batch size to {size}",
            hint=f"export it with a dynamic batch dimension, or say batching.max_batch_size: {size}",
        )
    return True, (size,), size


def _only_one(asked: int) -> int:
    if asked > 1:
        raise InvalidModel("this export works for one picture at a time", hint="say batching.max_batch_size: 1")
    return 1


def _joins(session: ort.InferenceSession, options: LoadOptions) -> bool:
    """Whether the batch is the first dimension of all inputs and outputs, and no other: the same symbol, or tried out."""
    if any((known_shape(spec, options) or (0,))[0] is not None for spec in inputs_of(session)):
        return False
    shapes = [node.shape for node in (*session.get_inputs(), *session.get_outputs())]
    firsts = {shape[0] if shape else 0 for shape in shapes}
    if len({shape[0] for shape in shapes[: len(session.get_inputs())]} - {None}) > 1:
        return False
    if len(firsts) == 1 and isinstance(symbol := next(iter(firsts)), str):
        return not any(symbol in shape[1:] for shape in shapes)
    return _gives_rows(session, options, 2) and (_asked(options) or not _some_stand_alone(session, options))


def _asked(options: LoadOptions) -> bool:
    return bool(options.max_batch_size or options.batch_sizes)


def _some_stand_alone(session: ort.InferenceSession, options: LoadOptions) -> bool:
    """Whether an input's first dimension may be another than that of the others, which then is no batch.

    By 2 and 3, since 1 would be taken for any size where inputs are added, say.
    """
    names = [spec.name for spec in inputs_of(session)]
    if len(names) < 2:
        return False
    return any(_tried(session, options, {name: 3 if name == lone else 2 for name in names}) for lone in names)


def _gives_rows(session: ort.InferenceSession, options: LoadOptions, rows: int) -> bool:
    """Whether so many rows in give as many out of each output, and change nothing else of its shape."""
    names = [spec.name for spec in inputs_of(session)]
    small, large = (_tried(session, options, dict.fromkeys(names, count)) for count in (rows, rows + 5))
    if small is None or large is None:
        return False
    return all(a == (rows, *b[1:]) and b[:1] == (rows + 5,) for a, b in zip(small, large, strict=True))


def _tried(
    session: ort.InferenceSession, options: LoadOptions, rows: Mapping[str, int]
) -> list[tuple[int, ...]] | None:
    """The shapes of the outputs where each input has so many `rows`, of zeros; None where the model fails on them."""
    feeds = {}
    for spec in inputs_of(session):
        shape = [size_or(size, 1) for size in known_shape(spec, options)]
        feeds[spec.name] = zeros([rows[spec.name], *shape[1:]], spec.dtype)
    try:
        return [value.shape for value in OnnxRuntimeContext(session, options).infer(feeds).values()]
    except Exception:  # its exceptions have no base class
        return None
