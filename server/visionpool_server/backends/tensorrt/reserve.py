"""Memory for the largest batch that an engine takes, so that none has to be found while it serves."""

from __future__ import annotations

from collections.abc import Sequence

from visionpool.errors import InferenceFailed, InvalidRequest

from visionpool_server.backends.tensorrt.buffers import BufferSet
from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.ranges import Shapes
from visionpool_server.backends.tensorrt.runner import Runner
from visionpool_server.cuda.gpu import Stream

_MOST = 256 << 20  # bytes of one tensor: profiles may allow far more than ever comes


def reserve(loaded: Loaded, runner: Runner, sets: Sequence[BufferSet], stream: Stream) -> None:
    """Has the slots of all `sets` allocate for the largest shapes of each profile. Raises OutOfMemory."""
    if any(tensor.on_host for tensor in loaded.inputs):
        return  # the sizes of outputs follow from numbers
    for index, profile in reversed(
        list(enumerate(loaded.ranges.profiles))
    ):  # so that the first one is chosen in the end
        shapes = {name: allowed.max for name, allowed in profile.shapes.items()}
        try:
            outputs = runner.shape(index, shapes, {}, stream)
        except (InferenceFailed, InvalidRequest):
            continue  # the largest of each input do not go together: they grow when they come
        _allocate(loaded, runner, sets, {**shapes, **outputs})
    stream.synchronize()


def _allocate(loaded: Loaded, runner: Runner, sets: Sequence[BufferSet], shapes: Shapes) -> None:
    for tensor in loaded.tensors:
        shape = shapes[tensor.name]
        size = runner.most(tensor.name) if -1 in shape else tensor.size(shape)
        if not 0 < size <= _MOST:
            continue
        picture = loaded.image is not None and tensor.name == loaded.image.name
        for slot in (buffers.slots[tensor.name] for buffers in sets):
            if not picture:  # its pixels have memory of their own
                slot.pinned(size)
            if not tensor.on_host:
                slot.device(size)
