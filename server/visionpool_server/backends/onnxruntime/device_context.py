"""What a worker uses on an NVIDIA GPU: one session for all, whose inputs are bound to memory that is ours.

    begin    pictures, tensors -> pinned -> (our stream) copy, kernel -> inputs on the device
    outputs  wait for that -> run (ONNX Runtime's stream) -> (our stream) copy -> pinned

One session is one copy of the weights. Its `run` may be called by many threads at once: each run borrows a stream of its own
from the session (DeviceStreamCollection, since 1.14). The option `user_compute_stream` would be one stream for all runs, or a
session and a copy of the weights for each worker; so ONNX Runtime does not know our streams. Hence we wait, on the host, for a
batch's copy before its run; and the run waits for its own stream before it returns (unless RunOptions say
`disable_synchronize_execution_providers`, which they do not here). Its CUDA graphs allow one thread and one set of addresses
in a session, so they are not for this; TensorRT's contexts have their own.

Outputs are bound to the device and not to memory of ours: ONNX Runtime copies as many bytes as there are to a buffer that it
was told the shape of (`IDataTransfer::CopyTensors` compares nothing), and files are wrong about the shapes of their outputs
often enough. Once it has run, the shapes are known, and the copy to pinned memory is ours.

What overlaps: a worker begins the next batch, then asks for the outputs of the last. The copy of batch n + 1 is told to our
stream before the run of n begins, and is done by the copy engine during it. A run blocks its thread, so what the CPU does for a
batch (copying to pinned memory, finishing) overlaps with the runs of other workers, not with its own worker's: hence two
workers a GPU by default, and no further threads.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass

import onnxruntime as ort

from visionpool_server.backends import DTYPES, ImageInput, Pending, Tensors, numpy_dtype
from visionpool_server.backends.onnxruntime.device import Lease
from visionpool_server.backends.onnxruntime.provider import Provider
from visionpool_server.backends.onnxruntime.session import inputs_of, spec_of
from visionpool_server.backends.onnxruntime.slot import OnDevice, Slot

DEPTH = 2


def can_be_bound(session: ort.InferenceSession) -> bool:
    """Whether all inputs and outputs are tensors of numbers that NumPy has: no other is bound by an address."""
    kinds = {spec.dtype for spec in (*inputs_of(session), *map(spec_of, session.get_outputs()))}
    return kinds <= {*DTYPES} - {"bytes", "bfloat16"}


@dataclass(frozen=True, slots=True)
class Shared:
    """What the contexts of an engine have in common."""

    session: ort.InferenceSession
    image: ImageInput | None
    provider: Provider
    lease: Lease


class DeviceContext:
    """A DeepContext."""

    depth = DEPTH

    def __init__(self, shared: Shared) -> None:
        self._shared: Shared | None = shared
        self._gpu = shared.lease.gpu
        self._dtypes = {spec.name: numpy_dtype(spec.dtype) for spec in map(spec_of, shared.session.get_outputs())}
        self._next = 0
        image = shared.image
        kinds = {spec.name: spec.dtype for spec in inputs_of(shared.session)}
        with self._gpu.current(), ExitStack() as made:
            stream = self._gpu.stream()
            made.callback(stream.close)
            self._slots = []
            for _ in range(DEPTH):
                self._slots.append(slot := Slot(self._gpu, stream, image, kinds[image.name] if image else "float32"))
                made.callback(slot.close)
            made.callback(stream.synchronize)  # before all else
            self._held = made.pop_all()
        shared.lease.take()
        self._ended = weakref.finalize(self, shared.lease.give)
        self._ended.atexit = False  # CUDA may be gone by then

    def infer(self, batch: Tensors) -> Tensors:
        return self.begin(batch).outputs()

    def begin(self, batch: Tensors) -> Pending:
        self._open()
        slot = self._slots[self._next]
        with self._gpu.current():
            slot.take(batch)
        self._next = (self._next + 1) % DEPTH
        return _Begun(self, slot)

    def outputs_of(self, slot: Slot) -> Tensors:
        """Runs what is in a slot, once it is on the device."""
        shared = self._open()
        with self._gpu.current():
            slot.wait()
        # A new binding each time: an old one holds on to the shapes that its outputs had.
        binding, memory, ordinal = shared.session.io_binding(), shared.provider.memory, shared.provider.ordinal
        for name, tensor in slot.inputs.items():
            binding.bind_input(name, memory, ordinal, tensor.dtype.type, tensor.shape, tensor.address)
        for name in self._dtypes:
            binding.bind_output(name, memory, ordinal)
        shared.session.run_with_iobinding(binding)
        values = zip(self._dtypes.items(), binding.get_outputs(), strict=True)
        found = {name: OnDevice(value.data_ptr(), dtype, tuple(value.shape())) for (name, dtype), value in values}
        with self._gpu.current():
            return slot.fetch(found)  # while the binding holds them

    def close(self) -> None:
        if self._ended.alive:
            try:
                with self._gpu.current():
                    self._held.close()
            finally:
                self._shared = None  # and with the last context's, the weights
                self._ended()

    def _open(self) -> Shared:
        if self._shared is None:
            raise ValueError("this context is closed")
        return self._shared


@dataclass(frozen=True, slots=True)
class _Begun:
    context: DeviceContext
    slot: Slot

    def outputs(self) -> Tensors:
        return self.context.outputs_of(self.slot)
