"""TensorRT without visionpool around it: enqueue as fast as one thread can, with copies, on two contexts by turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool_server.backends import Tensors
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.log import logger
from visionpool_server.backends.tensorrt.tensors import Tensor, tensors_of
from visionpool_server.cuda.gpu import DeviceBuffer, Event, Gpu, PinnedBuffer, Stream

_LANES = 2


class BareEngine:
    """The device has to be current wherever it is used."""

    def __init__(self, api: Api, gpu: Gpu, plan: bytes) -> None:
        self.api = api
        self.gpu = gpu
        self._runtime: Any = api.trt.Runtime(logger(api))
        self.engine: Any = self._runtime.deserialize_cuda_engine(plan)  # trt.ICudaEngine
        if self.engine is None:
            raise RuntimeError(f"{api.title} does not take the plan")
        self.tensors = tensors_of(api, self.engine)

    def close(self) -> None:
        self.engine = None
        self._runtime = None


class Lane:
    """A context and a stream: what is told in one go is copied up, computed and copied down."""

    def __init__(self, bare: BareEngine, batch: Tensors) -> None:
        self._stream: Stream = bare.gpu.stream()
        self._done: Event = bare.gpu.event()
        self._context: Any = bare.api.context(bare.engine, graphs=False, lent=False)  # trt.IExecutionContext
        self._context.set_optimization_profile_async(0, self._stream.handle)
        for name, array in batch.items():
            self._context.set_input_shape(name, array.shape)
        self._context.infer_shapes()
        self._buffers = {tensor: self._room(bare.gpu, tensor) for tensor in bare.tensors}
        for tensor, (host, device) in self._buffers.items():
            self._context.set_tensor_address(tensor.name, device.address)
            if tensor.is_input:
                host.bytes[:] = batch[tensor.name].view("uint8").ravel()
        self._stream.synchronize()

    def _room(self, gpu: Gpu, tensor: Tensor) -> tuple[PinnedBuffer, DeviceBuffer]:
        size = tensor.size(tuple(self._context.get_tensor_shape(tensor.name)))
        return gpu.pinned(size), gpu.buffer(size)

    def step(self) -> None:
        """Once what it was told before is done."""
        self._done.synchronize()
        for tensor, (host, device) in self._buffers.items():
            if tensor.is_input:
                device.upload(host, host.size, self._stream)
        if not self._context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT refuses to enqueue")
        for tensor, (host, device) in self._buffers.items():
            if not tensor.is_input:
                device.download(host, host.size, self._stream)
        self._done.record(self._stream)

    def outputs(self) -> Mapping[str, Any]:
        """Of the last step, as bytes."""
        self._done.synchronize()
        return {tensor.name: host.bytes.copy() for tensor, (host, _) in self._buffers.items() if not tensor.is_input}

    def close(self) -> None:
        self._stream.synchronize()
        self._context = None
        for host, device in self._buffers.values():
            host.close()
            device.close()
        self._done.close()
        self._stream.close()


class BareLoop:
    def __init__(self, bare: BareEngine, batch: Tensors) -> None:
        self.lanes = [Lane(bare, batch) for _ in range(_LANES)]
        self._turn = 0

    def step(self) -> None:
        self.lanes[self._turn % _LANES].step()
        self._turn += 1

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()
