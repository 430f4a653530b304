"""One plan on one GPU: deserialised once, it holds the weights, and gives each worker a context of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from threading import Lock, current_thread
from typing import Any

import numpy as np
from visionpool.errors import InvalidModel, Unavailable

from visionpool_server.backends import ImageInput, LoadOptions, Placement, Tensors
from visionpool_server.backends.survey import Timing
from visionpool_server.backends.tensorrt import layers
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.context import TensorRtContext
from visionpool_server.backends.tensorrt.deserialized import deserialized
from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.ranges import ranges_of
from visionpool_server.backends.tensorrt.rows import Batching, batching
from visionpool_server.backends.tensorrt.runner import Runner
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.backends.tensorrt.tensors import tensors_of
from visionpool_server.backends.tensorrt.tracebacks import forget_variables
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.imaging.unprepared import Unprepared

_CONTEXTS = 2  # one computes while the other's batch is finished on the CPU


class TensorRtEngine:
    """Owns `gpu` from now on, and closes it, also where it cannot be made.

    Raises UnusablePlan for a plan of another TensorRT or GPU, InvalidModel for one that cannot be served, CudaError.
    """

    def __init__(
        self,
        api: Api,
        plan: bytes,
        options: LoadOptions,
        settings: TensorRtSettings,
        gpu: Gpu,
        *,
        advice: str | None = None,
    ) -> None:
        self._gpu = gpu
        self._options = options
        self._making = Lock()  # a context: one at a time, since what TensorRT does meanwhile is its own affair
        self._lock = Lock()  # of what follows; not held meanwhile: the device may hang
        self._contexts: set[TensorRtContext] = set()
        self._makers = 0
        self._closing = self._ended = False
        self._runtime: Any = None
        self._loaded: Loaded | None = None
        try:
            self._loaded = self._load(api, plan, settings)
            self.batched, self.batch_sizes, self.max_batch_size = self._batching()
        except BaseException as error:
            with suppress(CudaError), gpu.current():
                forget_variables(error)
            self.close()
            raise
        self.contexts = options.contexts or _CONTEXTS
        self.on_cpu = False
        self.quick_bytes = 0
        memory = None if settings.streams_weights else len(plan) + self._context_bytes()
        self._placement = Placement("tensorrt", self._loaded.device, self.precision, advice=advice, memory_bytes=memory)

    def _load(self, api: Api, plan: bytes, settings: TensorRtSettings) -> Loaded:
        with self._gpu.current():
            self._runtime, engine = deserialized(api, plan, self._gpu, own_code=settings.version_compatible)
            _stream_weights(engine, settings)
            tensors = tensors_of(api, engine)
        graphs = settings.cuda_graphs and not settings.streams_weights
        graphs = graphs and (api.captures_itself or self._gpu.driver.graphs)
        image = self._options.image
        if image and image.name not in {tensor.name for tensor in tensors if tensor.is_input}:
            there = ", ".join(tensor.name for tensor in tensors if tensor.is_input)
            raise InvalidModel(f"the engine has no input {image.name!r}", hint=f"its inputs are {there}")
        return Loaded(api, engine, self._gpu, tensors, ranges_of(engine, tensors), image, graphs)

    def _batching(self) -> Batching:
        loaded = replace(self._there(), graphs=False)
        with (
            self._gpu.current(),
            closing(loaded),
            closing(self._gpu.stream()) as stream,
            closing(Runner(loaded)) as runner,
        ):
            try:
                return batching(loaded, self._options, runner, stream)
            finally:
                stream.synchronize()

    def _context_bytes(self) -> int:
        """What all contexts compute in."""
        return self.contexts * int(self._there().engine.device_memory_size_v2)

    def _there(self) -> Loaded:
        if self._loaded is None or self._closing:
            raise Unavailable("the model was unloaded")
        return self._loaded

    def clone(self) -> TensorRtContext:
        """Raises OutOfMemory and InferenceFailed where the device has no room for one more. Has to be closed, by the thread
        that uses it; the engine waits for that."""
        with self._making:
            with self._lock:
                loaded = self._there()
                self._makers += 1
            try:
                context = TensorRtContext(loaded, self._ended_context)
                with self._lock:
                    self._contexts.add(context)
                return context
            finally:
                with self._lock:
                    self._makers -= 1
                self._end_if_unused()

    def example(self) -> Tensors:
        """Zeros that the engine takes, and ones beside a picture: of what the first profile is tuned for."""
        loaded, tensors = self._there(), {}
        profile = loaded.ranges.profiles[0]
        rows = self.batch_sizes[0] if self.batch_sizes else None
        for tensor in loaded.inputs:
            shape = profile.shapes[tensor.name].opt
            shape = (rows, *shape[1:]) if rows and tensor.shape[:1] == (-1,) else shape
            if loaded.image and tensor.name == loaded.image.name:
                tensors[tensor.name] = _black(loaded.image, shape)
            elif tensor.name in profile.values:
                tensors[tensor.name] = np.array(profile.values[tensor.name].opt, tensor.dtype).reshape(shape)
            else:
                tensors[tensor.name] = (np.ones if loaded.image else np.zeros)(shape, tensor.dtype)
        return tensors

    def layers(self) -> tuple[layers.Layer, ...]:
        """As executed, fused ones as one; empty where the engine was built to tell nothing."""
        with self._gpu.current():
            return layers.layers_of(self._there())

    def profile(self, batch: Tensors, seconds: float) -> tuple[Timing, ...]:
        """Runs `batch` again and again for so long, and says what each kind of layer took of the device's time."""
        times, runs = layers.profiler(self._there().api), 0
        with (
            closing(replace(self._there(), graphs=False)) as loaded,
            closing(TensorRtContext(loaded, _nobody)) as context,
        ):
            context.infer(batch)  # the first takes longer
            context.report_to(times)
            until = time.monotonic() + seconds
            while runs == 0 or time.monotonic() < until:
                context.infer(batch)
                runs += 1
        return layers.timings(times, runs, self.layers(), self._there().device)

    @property
    def precision(self) -> str:
        """What it computes in: what it was asked for, or what its file says."""
        return self._options.precision or "as in the file"

    def describe(self) -> Placement:
        return self._placement

    def shape_use(self) -> None:
        """Nothing is kept for each shape."""

    def close(self) -> None:
        """Contexts first, then the engine, then the runtime, then the GPU. What a living thread still uses ends before:
        the rest then follows when its context is closed."""
        with self._lock:
            self._closing = True
            contexts = list(self._contexts)
        for context in contexts:
            if context.thread is current_thread() or not context.thread.is_alive():
                context.close()
        self._end_if_unused()

    def _ended_context(self, context: TensorRtContext) -> None:
        with self._lock:
            self._contexts.discard(context)
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        with self._lock:
            if not self._closing or self._contexts or self._makers or self._ended:
                return
            self._ended = True
        with suppress(CudaError), self._gpu.current():  # where the device is lost, there is nothing left to free
            if self._loaded:
                self._loaded.close()
            self._runtime = None
        with suppress(CudaError):
            self._gpu.close()


def _nobody(context: TensorRtContext) -> None:
    """Has to know that this context is closed."""


def _stream_weights(engine: Any, settings: TensorRtSettings) -> None:
    """How much of the weights is on the device; the others come from RAM with each inference. Before any context is."""
    if settings.weight_streaming is False or not engine.streamable_weights_size:
        return
    budget = settings.weight_streaming
    most = engine.streamable_weights_size
    # The binding gives the automatic budget as 32 bits with a sign, though TensorRT has 64: what is more comes out negative.
    said = engine.get_weight_streaming_automatic_budget() % (1 << 32) if budget is True else budget << 20
    engine.weight_streaming_budget_v2 = min(said, most)


def _black(image: ImageInput, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Black pictures as the engine takes them, for a tensor of that shape."""
    batch = (1, *shape) if image.layout == "CHW" else tuple(shape)
    count, height, width, channels = batch if image.layout == "NHWC" else (batch[0], *batch[2:], batch[1])
    pixels = np.zeros((count, height, width, channels), image.dtype)
    if not image.unprepared:
        return pixels
    pictures = np.empty(count, object)
    pictures[:] = [Unprepared.of(np.asarray(one, np.uint8)) for one in pixels]
    return pictures
