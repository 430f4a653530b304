"""One session on one device, and the contexts that share it."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from visionpool.errors import InvalidModel

from visionpool_server.backends import Context, DeepContext, LoadOptions, Placement, Source, Tensors, ones, zeros
from visionpool_server.backends.onnxruntime.batches import batching
from visionpool_server.backends.onnxruntime.context import OnnxRuntimeContext
from visionpool_server.backends.onnxruntime.device import Lease
from visionpool_server.backends.onnxruntime.device_context import DeviceContext, Shared, can_be_bound
from visionpool_server.backends.onnxruntime.provider import Provider
from visionpool_server.backends.onnxruntime.session import (
    inputs_of,
    known_shape,
    open_session,
    reason,
    refuse_what_it_cannot_send,
    size_or,
    weight_bytes,
)
from visionpool_server.cpu import cpu_count
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.imaging.unprepared import Unprepared

_GPU_CONTEXTS = 2  # one's batch is computed while the other's is finished, and the next one made ready


def load_on(source: Source, options: LoadOptions, provider: Provider, gpu: Gpu | None) -> OnnxRuntimeEngine:
    """An engine that was run once. It closes `gpu`, the device that its contexts bind memory of."""
    contexts = options.contexts or (_GPU_CONTEXTS if gpu else cpu_count())
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = max(1, cpu_count() // contexts)
    settings.log_severity_level = 3  # its warnings are about its own graph rewriting
    session = opened(source, options, settings, provider)
    if options.image is None:
        refuse_what_it_cannot_send(session)
    engine = OnnxRuntimeEngine(session, options, contexts, provider, gpu, held=weight_bytes(source.weights))
    _run_once(engine, options)
    return engine


def opened(
    source: Source, options: LoadOptions, settings: ort.SessionOptions, provider: Provider
) -> ort.InferenceSession:
    """A session as models are served with. Raises InvalidModel, BackendUnavailable."""
    for key, value in provider.entries(options.options).items():
        settings.add_session_config_entry(key, value)
    if provider.on_cpu:
        session = open_session(source.weights, settings, provider)
    else:  # not twice on a GPU
        session = open_session(source.weights, _as_it_is(), Provider())
    dynamic = _is_dynamic(session, options)
    if dynamic:
        settings.enable_mem_pattern = False  # one is kept for each shape that comes: memory would grow with them
    if dynamic or not provider.on_cpu:
        changing = any(None in known_shape(spec, options) for spec in inputs_of(session))
        session = open_session(source.weights, settings, provider.tuned(options.options, dynamic=changing))
    return session


def _as_it_is() -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4  # what is wrong with it is reported when it is opened in earnest
    return settings


def _is_dynamic(session: ort.InferenceSession, options: LoadOptions) -> bool:
    """Whether other dimensions than the batch may differ from one inference to the next."""
    sized = options.image.name if options.image and options.image.size else None
    return any(None in known_shape(spec, options)[1:] for spec in inputs_of(session) if spec.name != sized)


def _run_once(engine: OnnxRuntimeEngine, options: LoadOptions) -> None:
    """Runs zeros. A plain model with dynamic dimensions may refuse those of guessed sizes for good reasons."""
    example = engine.example()
    context = engine.clone()
    try:
        context.infer(example)
    except Exception as error:  # its exceptions have no base class of their own
        if options.image is None and engine.dynamic:
            return
        raise InvalidModel(
            f"the model loads, but fails on {'a black picture' if options.image else 'zeros'}: {reason(error)}",
            hint="check runtime.shapes and preprocess in model.yaml",
        ) from error
    finally:
        if isinstance(context, DeepContext):
            context.close()


class OnnxRuntimeEngine:
    def __init__(
        self,
        session: ort.InferenceSession,
        options: LoadOptions,
        contexts: int,
        provider: Provider,
        gpu: Gpu | None,
        *,
        held: int | None = None,
    ) -> None:
        self._session = session
        self._options = options
        self._inputs = inputs_of(session)
        self._lease = Lease(gpu) if gpu else None
        self._shared: Shared | None = None
        if self._lease and can_be_bound(session):
            self._shared = Shared(session, options.image, provider, self._lease)
        self.contexts = contexts
        self.quick_bytes = 0
        self.on_cpu = gpu is None
        self.batched, self.batch_sizes, self.max_batch_size = batching(session, options)
        own = session.get_providers()[0].removesuffix("ExecutionProvider")
        device = f"cuda:{gpu.ordinal}" if gpu else own
        self._placement = Placement("onnxruntime", device, "as in the file", memory_bytes=held)

    def clone(self) -> Context:
        return DeviceContext(self._shared) if self._shared else OnnxRuntimeContext(self._session, self._options)

    @property
    def dynamic(self) -> bool:
        """Whether `example` has to guess at dimensions."""
        return any(None in (spec.shape or ()) for spec in self._inputs)

    def example(self) -> Tensors:
        """Zeros that the engine takes, and ones beside a picture: of pictures, the smallest batch."""
        tensors, count = {}, (self.batch_sizes or (1,))[0]
        for spec in self._inputs:
            image, known = self._options.image, known_shape(spec, self._options)
            if image and image.name == spec.name:
                rows = 2 if image.layout == "NCHW" else 1
                height, width = image.size or (known[rows] or 32, known[rows + 1] or 32)
                black = np.zeros((count, height, width, len(image.arithmetic.mean)), np.uint8)
                tensors[spec.name] = _unprepared(black) if image.unprepared else black
            else:
                shape = [size_or(size, 1) for size in known]
                tensors[spec.name] = ones([count, *shape[1:]], spec.dtype) if image else zeros(shape, spec.dtype)
        return tensors

    def describe(self) -> Placement:
        return self._placement

    def shape_use(self) -> None:
        """Nothing is kept for each shape."""

    def close(self) -> None:
        """Contexts in use keep the session, and the device, until they end."""
        self._session = self._shared = None
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.give()


def _unprepared(pictures: NDArray[np.uint8]) -> NDArray[np.object_]:
    """(N, H, W, 3) as a GPU takes pictures that nobody resized, in their own size: (N,)."""
    out = np.empty(len(pictures), object)
    out[:] = [Unprepared.of(pixels) for pixels in pictures]
    return out
