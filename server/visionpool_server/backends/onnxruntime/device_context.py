"""What a worker uses on an NVIDIA GPU: one session for all, with inputs and outputs bound to memory that is ours.

    begin    pictures, tensors -> pinned -> (own stream) copy, kernel -> inputs on the device
    outputs  wait for that copy -> run (ONNX Runtime's stream) -> outputs in pinned memory

One session is one copy of the weights. Its `run` may be called by many threads at once: each run borrows a stream of its own
from the session (DeviceStreamCollection, since 1.14). The option `user_compute_stream` would be one stream for all runs, or a
session and a copy of the weights for each worker; so ONNX Runtime does not know our streams. Hence we wait, on the host, for a
batch's copy before its run, and the run itself waits for its stream before it returns (unless RunOptions say
`disable_synchronize_execution_providers`, which they do not here). Its CUDA graphs allow one thread and one set of addresses
in a session, so they are not for this; TensorRT's contexts have their own.

What overlaps: a worker begins the next batch, then asks for the outputs of the last. The copy of batch n + 1 is told to our
stream before the run of n begins, and is done by the copy engine during it. A run blocks its thread, so what the CPU does for a
batch (copying to pinned memory, finishing) overlaps with the runs of other workers, not with its own worker's: hence two
workers a GPU by default, and no further threads.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from visionpool_server.backends import DTYPES, LoadOptions, Pending, Tensors, numpy_dtype
from visionpool_server.backends.onnxruntime.promises import Promises, Shape
from visionpool_server.backends.onnxruntime.provider import Provider
from visionpool_server.backends.onnxruntime.session import inputs_of, spec_of
from visionpool_server.backends.onnxruntime.slot import OnDevice, Slot
from visionpool_server.cuda.gpu import Gpu

DEPTH = 2


def can_be_bound(session: ort.InferenceSession) -> bool:
    """Whether all inputs and outputs are tensors of numbers that NumPy has: no other is bound by an address."""
    kinds = {spec.dtype for spec in (*inputs_of(session), *map(spec_of, session.get_outputs()))}
    return kinds <= {*DTYPES} - {"bytes", "bfloat16"}


class DeviceContext:
    """A DeepContext. `on_close`: called once, when it is closed or forgotten."""

    depth = DEPTH

    def __init__(
        self,
        session: ort.InferenceSession,
        options: LoadOptions,
        provider: Provider,
        gpu: Gpu,
        promises: Promises,
        on_close: Callable[[], None],
    ) -> None:
        self._session = session
        self._provider = provider
        self._gpu = gpu
        self._promises = promises
        self._dtypes = {spec.name: numpy_dtype(spec.dtype) for spec in map(spec_of, session.get_outputs())}
        self._next = 0
        image = options.image
        kinds = {spec.name: spec.dtype for spec in inputs_of(session)}
        dtype = kinds[image.name] if image else ""
        with gpu.current(), ExitStack() as made:
            stream = gpu.stream()
            made.callback(stream.close)
            self._slots = []
            for _ in range(DEPTH):
                self._slots.append(slot := Slot(gpu, stream, image, dtype))
                made.callback(slot.close)
            made.callback(stream.synchronize)  # before all else
            self._held = made.pop_all()
        self._ended = weakref.finalize(self, on_close)
        self._ended.atexit = False  # CUDA may be gone by then

    def infer(self, batch: Tensors) -> Tensors:
        return self.begin(batch).outputs()

    def begin(self, batch: Tensors) -> Pending:
        slot = self._slots[self._next]
        with self._gpu.current():
            slot.take(batch)
        self._next = (self._next + 1) % DEPTH
        return _Begun(self, slot)

    def outputs_of(self, slot: Slot) -> Tensors:
        """Runs what is in a slot, once it is on the device."""
        with self._gpu.current():
            slot.wait()
        given = {name: tensor.shape for name, tensor in slot.inputs.items()}
        promised = self._promises.shapes(given)
        try:
            outputs, made = self._run(slot, promised)
        except Exception:  # its exceptions have no base class of their own
            if not promised:
                raise
            outputs, made = self._run(slot, {})  # the promised shapes may be what it failed on
        if made:
            outputs.update(self._fetched(slot, made))
            self._promises.compare(given, {name: array.shape for name, array in outputs.items()})
        return {name: outputs[name] for name in self._dtypes}

    def _run(
        self, slot: Slot, promised: Mapping[str, Shape]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, ort.OrtValue]]:
        """The outputs in our memory, and those in ONNX Runtime's own, on the device."""
        binding = (
            self._session.io_binding()
        )  # a new one: from run to run, it would hold on to the shapes of its outputs
        memory, ordinal = self._provider.memory, self._provider.ordinal
        for name, tensor in slot.inputs.items():
            binding.bind_input(name, memory, ordinal, tensor.dtype.type, tensor.shape, tensor.address)
        outputs = {}
        with self._gpu.current():
            for name, shape in promised.items():
                address, outputs[name] = slot.landing(name, self._dtypes[name], shape)
                binding.bind_output(name, "cpu", 0, self._dtypes[name].type, shape, address)
        others = [name for name in self._dtypes if name not in promised]
        for name in others:
            binding.bind_output(name, memory, ordinal)
        self._session.run_with_iobinding(binding)
        return outputs, dict(zip(others, binding.get_outputs()[len(promised) :], strict=True))

    def _fetched(self, slot: Slot, made: Mapping[str, ort.OrtValue]) -> dict[str, NDArray[Any]]:
        with self._gpu.current():
            arrays = {
                name: slot.fetch(name, OnDevice(value.data_ptr(), self._dtypes[name], tuple(value.shape())))
                for name, value in made.items()
            }
            slot.wait()
        return arrays

    def close(self) -> None:
        if self._ended.alive:
            try:
                with self._gpu.current():
                    self._held.close()
            finally:
                self._session = None
                self._ended()


@dataclass(frozen=True, slots=True)
class _Begun:
    context: DeviceContext
    slot: Slot

    def outputs(self) -> Tensors:
        return self.context.outputs_of(self.slot)
