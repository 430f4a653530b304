"""A KServe v2 server on a real socket of 127.0.0.1, for a few lines of NumPy, that can be told to be unwell.

with KServeStub(means()) as stub:
    stub.fails = grpc.StatusCode.INTERNAL
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

Arrays = dict[str, NDArray[Any]]
Tensor = tuple[str, str, tuple[int, ...]]  # name, datatype, shape
_PATIENCE_S = 10.0  # for the server's own threads to start and end


@dataclass(frozen=True, slots=True)
class FarModel:
    """`max_batch_size` None: the server has no ModelConfig, as OpenVINO Model Server."""

    compute: Callable[[Arrays], Arrays]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int | None = None


def means(max_batch_size: int | None = 8, batch: int = -1, side: int = -1, datatype: str = "FP32") -> FarModel:
    """Pictures NCHW in; each one's mean of each channel, and how many pixels it has."""

    def compute(arrays: Arrays) -> Arrays:
        pictures = arrays["x"].astype(np.float32)
        pixels = np.full((len(pictures), 1), pictures.shape[2] * pictures.shape[3], np.int64)
        return {"means": pictures.mean(axis=(2, 3)), "pixels": pixels}

    outputs: tuple[Tensor, ...] = (("means", "FP32", (batch, 3)), ("pixels", "INT64", (batch, 1)))
    return FarModel(compute, (("x", datatype, (batch, 3, side, side)),), outputs, max_batch_size)


def echo(datatype: str, shape: tuple[int, ...] = (-1, -1), max_batch_size: int | None = None) -> FarModel:
    """What comes in, once as it is and once with its rows in reverse."""

    def compute(arrays: Arrays) -> Arrays:
        return {"same": arrays["x"], "reversed": arrays["x"][::-1]}

    outputs = (("same", datatype, shape), ("reversed", datatype, shape))
    return FarModel(compute, (("x", datatype, shape),), outputs, max_batch_size)


class KServeStub(GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated code has no types
    """Serves one model. Its public attributes may be changed while it runs."""

    def __init__(
        self,
        model: FarModel,
        name: str = "far",
        credentials: grpc.ServerCredentials | None = None,
        header: tuple[str, str] | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self.header = header  # whoever does not send it is not let in
        self.ready = True
        self.fails: grpc.StatusCode | None = None  # each inference
        self.fails_on: Mapping[str, grpc.StatusCode] = {}  # method -> status
        self.says = "/opt/secret/path: assertion failed"  # the text of its errors
        self.hang_s = 0.0  # before each answer to an inference
        self.spoil: Callable[[Any], None] | None = None  # changes a ModelInferResponse before it goes out
        self.requests: list[Any] = []  # the ModelInferRequests that came
        self.port = 0
        self._credentials = credentials
        self._stopping = threading.Event()
        self._server: grpc.Server | None = None

    @property
    def url(self) -> str:
        return (
            f"grpc{'s' if self._credentials else ''}://{'localhost' if self._credentials else '127.0.0.1'}:{self.port}"
        )

    def start(self) -> None:
        """On the port that it had before, if it had one."""
        self._stopping.clear()
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        self._threads = ThreadPoolExecutor(16, "kserve-stub")
        self._server = grpc.server(self._threads, options=options)
        add_GRPCInferenceServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self.port}"
        if self._credentials:
            self.port = self._server.add_secure_port(address, self._credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self._server.start()

    def stop(self) -> None:
        assert self._server
        stopped = self._server.stop(None)  # hangs up on all callers
        self._stopping.set()
        assert stopped.wait(_PATIENCE_S), "the stub does not stop"
        self._threads.shutdown()
        self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._server:
            self.stop()

    # The service

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._admit("ServerLive", context)
        return pb.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._admit("ModelReady", context)
        return pb.ModelReadyResponse(ready=self.ready and request.name == self.name)

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._admit("ModelMetadata", context)
        self._find(request.name, context)
        answer = pb.ModelMetadataResponse(name=self.name, versions=["1"], platform="numpy")
        for field, tensors in ((answer.inputs, self.model.inputs), (answer.outputs, self.model.outputs)):
            for name, datatype, shape in tensors:
                field.add(name=name, datatype=datatype, shape=shape)
        return answer

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._admit("ModelConfig", context)
        self._find(request.name, context)
        if self.model.max_batch_size is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        config = model_config_pb2.ModelConfig(name=self.name, max_batch_size=self.model.max_batch_size)
        return pb.ModelConfigResponse(config=config)

    def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._admit("RepositoryIndex", context)
        if self.model.max_batch_size is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        return pb.RepositoryIndexResponse(models=[pb.RepositoryIndexResponse.ModelIndex(name=self.name, state="READY")])

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._admit("ModelInfer", context)
        self.requests.append(request)
        self._find(request.model_name, context)
        self._stopping.wait(self.hang_s)
        if self.fails:
            context.abort(self.fails, self.says)
        answer = _response(self.name, self.model.compute(self._arrays(request, context)))
        if self.spoil:
            self.spoil(answer)
        return answer

    def _admit(self, method: str, context: grpc.ServicerContext) -> None:
        if self.header and self.header not in [tuple(item) for item in context.invocation_metadata()]:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, self.says)
        if method in self.fails_on:
            context.abort(self.fails_on[method], self.says)

    def _find(self, name: str, context: grpc.ServicerContext) -> None:
        if name != self.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    def _arrays(self, request: Any, context: grpc.ServicerContext) -> Arrays:
        """The request's tensors, refused as a real server refuses them where they are not what the model declares."""
        if [(tensor.name, tensor.datatype) for tensor in request.inputs] != [
            tensor[:2] for tensor in self.model.inputs
        ]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.says)
        arrays = {}
        for tensor, raw, (_, _, declared) in zip(
            request.inputs, request.raw_input_contents, self.model.inputs, strict=True
        ):
            if len(declared) != len(tensor.shape) or any(
                size not in (-1, got) for size, got in zip(declared, tensor.shape, strict=True)
            ):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.says)
            dtype = triton_to_np_dtype(tensor.datatype)
            flat = deserialize_bytes_tensor(raw) if tensor.datatype == "BYTES" else np.frombuffer(raw, dtype)
            arrays[tensor.name] = flat.reshape(tuple(tensor.shape))
        return arrays


def _response(model: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    answer = pb.ModelInferResponse(model_name=model, model_version="1")
    for name, array in arrays.items():
        answer.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        if array.dtype == object:
            answer.raw_output_contents.append(serialize_byte_tensor(array).item() if array.size else b"")
        else:
            answer.raw_output_contents.append(array.tobytes())
    return answer
