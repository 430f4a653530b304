"""What a worker uses: an execution context, three streams and two sets of buffers.

    upload stream    batch n+1: pinned memory -> device               then `uploaded`
    compute stream   waits for it; pictures' kernel, inference of n   then `computed`
    download stream  waits for it; device -> pinned memory, n-1       then `done`, for which `outputs()` waits

A set is free again once its `done` has happened: nothing of it is copied or computed any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread, current_thread
from typing import Any, TypeVar

from visionpool.errors import InferenceFailed, Unavailable

from visionpool_server.backends import Tensors
from visionpool_server.backends.tensorrt.buffers import BufferSet, Closing, close_all
from visionpool_server.backends.tensorrt.feeds import Feeds
from visionpool_server.backends.tensorrt.graphs import Graphs
from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.outputs import Allocator
from visionpool_server.backends.tensorrt.ranges import Shapes
from visionpool_server.backends.tensorrt.reserve import reserve
from visionpool_server.backends.tensorrt.results import Results
from visionpool_server.backends.tensorrt.runner import Runner
from visionpool_server.cuda.errors import CudaError, OutOfMemory
from visionpool_server.cuda.gpu import DeviceBuffer, Stream

log = logging.getLogger(__name__)

DEPTH = 2

Held = TypeVar("Held", bound=Closing)


class TensorRtContext:
    """Not thread-safe. `thread`: which used it last. `on_close(context)` is called once it holds nothing any more."""

    depth = DEPTH

    def __init__(self, loaded: Loaded, on_close: Callable[[TensorRtContext], None]) -> None:
        self.thread: Thread = current_thread()
        self._loaded = loaded
        self._on_close = on_close
        self._held: list[Closing] = []  # in the order in which it was made
        self._began = 0
        self._lost: str | None = None
        self._open = True
        with loaded.gpu.current():
            try:
                self._make()
            except BaseException:
                self._free()
                raise

    def _make(self) -> None:
        loaded, gpu = self._loaded, self._loaded.gpu
        self._upload, self._compute, self._download = (self._hold(gpu.stream()) for _ in range(3))
        # What TensorRT reads or writes in RAM it does while an inference is enqueued, and no graph repeats it.
        captured = loaded.graphs and not loaded.api.captures_itself and not any(each.on_host for each in loaded.tensors)
        memory = self._shared_memory() if captured else None
        self._runner = self._hold(Runner(loaded, memory))
        self._graphs = self._hold(Graphs(loaded, memory)) if memory else None
        self._sets = [self._hold(BufferSet(gpu, loaded.tensors)) for _ in range(DEPTH)]
        self._feeds = [self._hold(Feeds(loaded, buffers)) for buffers in self._sets]
        allocators: dict[str, Allocator] = {}
        self._results = [Results(loaded, buffers, allocators) for buffers in self._sets]
        reserve(loaded, self._runner, self._sets, self._compute)

    def _shared_memory(self) -> DeviceBuffer:
        """What inferences compute in, one after the other, whether captured or not."""
        return self._hold(self._loaded.gpu.buffer(self._loaded.engine.device_memory_size_v2))

    def _hold(self, made: Held) -> Held:
        self._held.append(made)
        return made

    def infer(self, batch: Tensors) -> Tensors:
        return self.begin(batch).outputs()

    def begin(self, batch: Tensors) -> Batch:
        """Raises InvalidRequest for shapes that the engine has no profile for, InferenceFailed, and Unavailable once the
        device is lost to this process."""
        self.thread = current_thread()
        self._refuse()
        index = self._began % DEPTH
        with self._loaded.gpu.current():
            try:
                self._sets[index].wait()
                shapes = self._start(index, batch)
            except Exception as error:
                self._recover(error)
                raise
        buffers = self._sets[index]
        self._began += 1
        buffers.busy, buffers.turn = True, self._began
        return Batch(self, index, self._began, shapes)

    def _start(self, index: int, batch: Tensors) -> Shapes:
        """The shapes of the outputs to come."""
        buffers, feeds, results = self._sets[index], self._feeds[index], self._results[index]
        shapes = feeds.load(batch)
        profile = self._loaded.ranges.choose(shapes, feeds.values(), self._runner.profile)
        results.expect(self._runner.shape(profile, shapes, feeds.on_host(), self._compute))
        feeds.upload(self._upload)
        buffers.uploaded.record(self._upload)
        self._compute.wait(buffers.uploaded)
        feeds.prepare(self._compute)
        self._enqueue(profile, shapes, feeds, results)
        buffers.computed.record(self._compute)
        self._download.wait(buffers.computed)
        results.download(self._download)
        buffers.done.record(self._download)
        return results.shapes()

    def _enqueue(self, profile: int, shapes: Shapes, feeds: Feeds, results: Results) -> None:
        addresses = feeds.addresses() | results.addresses()
        if self._graphs and not results.open and self._graphs.run(profile, shapes, addresses, self._compute):
            return
        self._runner.bind(addresses)
        results.offer(self._runner)
        results.enqueue(self._runner, self._compute)

    def report_to(self, profiler: Any) -> None:
        """`profiler`: a trt.IProfiler, which has to stay; it hears what each layer takes from now on."""
        self._runner.report_to(profiler)

    def collect(self, index: int, turn: int, shapes: Shapes) -> Tensors:
        """The outputs of a batch."""
        self._refuse()
        buffers = self._sets[index]
        if buffers.turn != turn:
            raise InferenceFailed("the outputs were asked for after two further batches had begun, and are gone")
        with self._loaded.gpu.current():
            try:
                buffers.wait()
            except Exception as error:
                self._recover(error)
                raise
        return self._results[index].views(shapes)

    def _refuse(self) -> None:
        if self._lost:
            raise self._device_lost()
        if not self._open:
            raise Unavailable("the model was unloaded")

    def _recover(self, error: Exception) -> None:
        """After a failure: nothing is under way any more, and the next batch begins afresh. Raises what is to be said of it,
        where it does not say so itself; no frame keeps what it raises, which would keep all that was made meanwhile."""
        lost = self._drain()
        if isinstance(error, CudaError) and error.sticky:
            lost = str(error)
        if lost is not None:
            self._lost = lost
            log.critical("%s is lost to this process, which has to be restarted: %s", self._loaded.device, lost)
            raise self._device_lost() from error
        if isinstance(error, OutOfMemory):
            hint = "fewer in workers, a smaller batching.max_batch_size, or a smaller max in runtime.profiles"
            raise InferenceFailed(
                f"{self._loaded.device} has no memory left for this batch: {error}", hint=hint
            ) from error
        if isinstance(error, CudaError):
            raise InferenceFailed(f"{self._loaded.device} failed: {error}") from error

    def _device_lost(self) -> Unavailable:
        return Unavailable(f"{self._loaded.device} is lost: {self._lost}", hint="the server has to be restarted")

    def _drain(self) -> str | None:
        """Waits until nothing is under way; what makes that impossible."""
        failure: str | None = None  # its text: an error would keep all that it was raised through
        for stream in (self._upload, self._compute, self._download):
            try:
                stream.synchronize()
            except CudaError as error:
                failure = failure or str(error)
        if failure is None:
            for buffers in self._sets:
                buffers.busy = False
        return failure

    def close(self) -> None:
        """Waits for what is under way, and frees all. A second call does nothing."""
        if not self._open:
            return
        self._open = False
        try:  # where the device is lost, there is nothing left to free
            with suppress(CudaError), self._loaded.gpu.current():
                self._free()
        finally:
            self._on_close(self)

    def _free(self) -> None:
        for stream in (one for one in self._held if isinstance(one, Stream)):
            with suppress(CudaError):  # of a device that is lost
                stream.synchronize()
        close_all(reversed(self._held))
        self._held.clear()


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that is under way."""

    _context: TensorRtContext
    _index: int
    _turn: int
    _shapes: Shapes

    def outputs(self) -> Tensors:
        """Waits for them. Views, until two further batches have begun. Raises what failed."""
        return self._context.collect(self._index, self._turn, self._shapes)
