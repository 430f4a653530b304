"""A runtime with no model, for tests of everything around one: a settable latency, and faults on demand.

It answers (N, 3): each picture's mean red, green and blue as shares of their sum, so that every answer can be held
against the very picture that was sent. Without an image in its options it takes float32 (N, 3, H, W) instead.

`runtime.options` in model.yaml:

    load_ms: 500       takes so long to load
    latency_ms: 20     sleeps so long for every batch
    depth: 2           takes the next batch in while one is computed, as a GPU does
    on_cpu: true       says that it computes on the CPU, where workers may decode as well
    quick_bytes: 999   says that inputs of at most so many bytes need no worker
    fail: [250, 0, 0]  a batch with a picture of this exact top-left pixel raises
    die: [...]         ... ends the worker's thread
    hang: [...]        ... does not come back for `hang_s` seconds (30)
    once: true         each of these only the first time
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionpool_server.backends import LoadOptions, Placement, Signature, Source, Tensors, TensorSpec


class WorkerKilled(BaseException):
    """Not an Exception: nothing on the way may catch it, as nothing can catch the end of a thread."""


class FakeBackend:
    def read(self, source: Source) -> Signature:  # noqa: ARG002  there is no file
        return Signature(
            (TensorSpec("images", (None, 3, None, None), "float32"),),
            (TensorSpec("output0", (None, 3), "float32"),),
        )

    def load(self, source: Source, options: LoadOptions) -> FakeEngine:  # noqa: ARG002  there is no file
        time.sleep(float(options.options.get("load_ms", 0)) / 1000)
        return FakeEngine(options)


class FakeEngine:
    def __init__(self, options: LoadOptions) -> None:
        self.contexts = options.contexts or 2
        self.quick_bytes = int(options.options.get("quick_bytes", 0))
        self.on_cpu = bool(options.options.get("on_cpu"))  # it sleeps, as a thread does that waits for an accelerator
        self.batched = True
        self.batch_sizes = options.batch_sizes
        self.max_batch_size = max(options.batch_sizes or (options.max_batch_size or 1,))
        self._options = options.options
        self._spent: set[str] = set()
        self._lock = Lock()
        self.batches: list[int] = []  # the sizes run so far
        self.open_contexts = 0  # of the deep ones

    def clone(self) -> FakeContext:
        depth = int(self._options.get("depth", 1))
        return FakeDeepContext(self, depth) if depth > 1 else FakeContext(self)

    def count_contexts(self, more: int) -> None:
        with self._lock:
            self.open_contexts += more

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        with self._lock:
            self.batches.append(len(images))
        time.sleep(float(self._options.get("latency_ms", 0)) / 1000)
        corners = {tuple(int(v) for v in image[0, 0]) for image in images}
        if self._struck("hang", corners):
            time.sleep(float(self._options.get("hang_s", 30)))
        if self._struck("die", corners):
            raise WorkerKilled
        if self._struck("fail", corners):
            raise RuntimeError("the fake runtime was told to fail")
        means = images.reshape(len(images), -1, 3).mean(axis=1) + 1e-6
        shares: NDArray[np.float32] = (means / means.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    def _struck(self, fault: str, corners: set[tuple[int, ...]]) -> bool:
        wanted: Any = self._options.get(fault)
        if wanted is None or tuple(wanted) not in corners:
            return False
        with self._lock:
            if fault in self._spent:
                return False
            if self._options.get("once"):
                self._spent.add(fault)
            return True

    def describe(self) -> Placement:
        return Placement("fake", "none", "f32")

    def shape_use(self) -> None:
        """Nothing is kept for each shape."""

    def close(self) -> None:
        """Nothing is held."""


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def infer(self, batch: Tensors) -> Tensors:
        return {"output0": self._engine.run(_pixels(batch))}


class FakeDeepContext(FakeContext):
    """A device that runs one batch after the other on a thread of its own. It holds its user to what a DeepContext says:
    outputs are asked for in order, never more than `depth` are awaited, and those of a batch are overwritten in time."""

    def __init__(self, engine: FakeEngine, depth: int) -> None:
        super().__init__(engine)
        self.depth = depth
        self._device = ThreadPoolExecutor(1, "fake-device")
        self._pending: deque[FakePending] = deque()
        self._given: deque[NDArray[np.float32]] = deque()  # outputs that are valid still
        engine.count_contexts(1)

    def begin(self, batch: Tensors) -> FakePending:
        if len(self._pending) >= self.depth:
            raise RuntimeError(f"{self.depth} batches are under way already")
        while len(self._given) + len(self._pending) >= self.depth:
            self._given.popleft().fill(np.nan)  # its buffer is that of the new batch
        pending = FakePending(self, self._device.submit(self._engine.run, _pixels(batch).copy()))
        self._pending.append(pending)
        return pending

    def infer(self, batch: Tensors) -> Tensors:
        return self.begin(batch).outputs()

    def outputs_of(self, pending: FakePending) -> Tensors:
        if not self._pending or self._pending[0] is not pending:
            raise RuntimeError("outputs are asked for in order, and once")
        self._pending.popleft()
        shares = pending.future.result()
        self._given.append(shares)
        return {"output0": shares}

    def close(self) -> None:
        self._device.shutdown()  # waits
        self._engine.count_contexts(-1)


class FakePending:
    def __init__(self, context: FakeDeepContext, future: Future[NDArray[np.float32]]) -> None:
        self.future = future
        self._context = context

    def outputs(self) -> Tensors:
        return self._context.outputs_of(self)


def _pixels(batch: Tensors) -> NDArray[Any]:
    """(N, H, W, 3), of uint8 like that or of its own float32 (N, 3, H, W)."""
    images = batch["images"]
    return images if images.dtype == np.uint8 else np.moveaxis(images, 1, -1)
