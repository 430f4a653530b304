"""Whether the rows of requests can be joined to one batch for an engine, and how many."""

from __future__ import annotations

from visionpool.errors import InferenceFailed, InvalidModel, InvalidRequest

from visionpool_server.backends import LoadOptions
from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.ranges import Shapes
from visionpool_server.backends.tensorrt.runner import Runner
from visionpool_server.cuda.gpu import Stream

Batching = tuple[bool, tuple[int, ...], int]  # `batched`, `batch_sizes` and `max_batch_size` of an engine


def batching(loaded: Loaded, options: LoadOptions, runner: Runner, stream: Stream) -> Batching:
    """Raises InvalidModel for batches that the engine was not built for."""
    asked = max(options.batch_sizes, default=options.max_batch_size or 0)
    if options.image and options.image.layout == "CHW":
        _refuse_other_than(1, asked or 1)
        return True, (1,), 1
    sizes = _sizes(loaded)
    if options.image is None and not (sizes and _joins(loaded, runner, stream, asked)):
        _refuse_other_than(1, asked or 1)
        return False, (), 1
    if max(asked, 1) > sizes[-1] or set(options.batch_sizes) - set(sizes):
        raise InvalidModel(
            f"this engine takes batches of {_text(sizes)}, not of {asked or 1}",
            hint=f"say batching.max_batch_size: {sizes[-1]}, or build it for more: runtime.profiles in model.yaml",
        )
    limit = asked or (sizes[-1] if options.image else 1)
    if options.batch_sizes:
        return True, tuple(sorted(set(options.batch_sizes))), limit
    usable = tuple(size for size in sizes if size <= limit) or sizes[:1]
    return True, () if usable == tuple(range(1, limit + 1)) else usable, max(limit, usable[-1])


def _sizes(loaded: Loaded) -> tuple[int, ...]:
    """How many rows each input may have, the same of all, ascending."""
    image = loaded.image.name if loaded.image else None
    allowed: set[int] | None = None
    for tensor in loaded.inputs:
        if tensor.on_host or not tensor.shape or (image and tensor.name != image and tensor.shape[0] != -1):
            continue
        rows = set(loaded.ranges.sizes(tensor.name))
        allowed = rows if allowed is None else allowed & rows
    return tuple(sorted(allowed or ()))


def _joins(loaded: Loaded, runner: Runner, stream: Stream, asked: int) -> bool:
    """Whether the batch is the first dimension of all inputs and outputs, and of no output another one too."""
    if any(tensor.on_host or not tensor.shape for tensor in loaded.inputs):
        return False
    open_ = all(tensor.shape[0] == -1 for tensor in loaded.inputs)
    if not open_:
        return asked > 0 and len({tensor.shape[0] for tensor in loaded.inputs}) == 1 and _of_outputs(loaded)
    return _gives_rows(loaded, runner, stream) and (asked > 0 or not _some_stand_alone(loaded, runner, stream))


def _of_outputs(loaded: Loaded) -> bool:
    size = loaded.inputs[0].shape[0]
    return all(tensor.shape and tensor.shape[0] in (size, -1) for tensor in loaded.outputs)


def _gives_rows(loaded: Loaded, runner: Runner, stream: Stream) -> bool:
    """Whether so many rows in give as many out of each output, and change nothing else of its shape."""
    least, most = _rows_of(loaded, _widest(loaded))
    small, large = (_tried(loaded, runner, stream, rows) for rows in (least, most))
    if small is None or large is None:
        return False
    return all(a[:1] == (least,) and b[:1] == (most,) and a[1:] == b[1:] for a, b in zip(small, large, strict=True))


def _some_stand_alone(loaded: Loaded, runner: Runner, stream: Stream) -> bool:
    """Whether an input's first dimension may be another than that of the others, which then is no batch."""
    least, most = _rows_of(loaded, _widest(loaded))
    names = [tensor.name for tensor in loaded.inputs]
    return len(names) > 1 and any(_tried(loaded, runner, stream, least, {lone: most}) for lone in names)


def _widest(loaded: Loaded) -> int:
    """The profile that takes most numbers of rows."""

    def span(index: int) -> int:
        least, most = _rows_of(loaded, index)
        return most - least

    return max(range(len(loaded.ranges.profiles)), key=span)


def _rows_of(loaded: Loaded, index: int) -> tuple[int, int]:
    """The least and the most rows that all inputs may have in a profile."""
    ranges = loaded.ranges.profiles[index].shapes.values()
    return max(one.min[0] for one in ranges), min(one.max[0] for one in ranges)


def _tried(
    loaded: Loaded, runner: Runner, stream: Stream, rows: int, other: dict[str, int] | None = None
) -> list[tuple[int, ...]] | None:
    """The shapes of the outputs where each input has so many rows; None where the engine refuses."""
    index = _widest(loaded)
    ranges = loaded.ranges.profiles[index].shapes
    shapes: Shapes = {name: ((other or {}).get(name, rows), *one.opt[1:]) for name, one in ranges.items()}
    try:
        return list(runner.shape(index, shapes, {}, stream).values())
    except (InvalidRequest, InferenceFailed):
        return None


def _refuse_other_than(size: int, asked: int) -> None:
    if asked != size:
        raise InvalidModel(
            f"this engine works on {size} at a time, not on {asked}", hint=f"say batching.max_batch_size: {size}"
        )


def _text(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
