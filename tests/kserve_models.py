"""Models for the tests of KServe v2, and ways to ask them: small ONNX files, and every transport under one name."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import httpx
import ml_dtypes
import numpy as np
import onnxruntime
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import yaml
from numpy.typing import NDArray
from onnx import TensorProto
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import (
    InferenceServerException,
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from tests.real_server import Server
from tests.tiny_models import Batch, Graph

Array = NDArray[Any]
Arrays = Mapping[str, Array]
PATIENCE = 60.0  # seconds that any single answer may take

ONNX_TYPES: dict[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "UINT64": "uint64_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


# Models


def write_yaml(folder: Path, **content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def weights(folder: Path) -> Path:
    """Where a model folder's ONNX file lies."""
    return folder / "model.onnx"


def operator(
    folder: Path, op: str, datatype: str, shape: Sequence[Batch], inputs: Sequence[str] = ("x",), **attributes: Any
) -> Path:
    """A folder with `y` = op(`inputs`), all of one type and shape."""
    graph = Graph()
    for name in inputs:
        graph.input(name, shape, ONNX_TYPES[datatype])
    graph.add(op, *inputs, output="y", **attributes)
    graph.output("y", shape, ONNX_TYPES[datatype])
    graph.save(weights(folder))
    return folder


def array_of(datatype: str, shape: Sequence[int], seed: int = 0) -> Array:
    """Small values of a type: so small that sums of two fit in all types, and none is rounded."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 50, tuple(shape))
    if datatype == "BYTES":
        texts = [f"größe {value}".encode() for value in values.ravel().tolist()]
        made = np.empty(len(texts), object)
        made[:] = texts
        return made.reshape(tuple(shape))
    if datatype == "BOOL":
        return np.asarray(values % 2 == 0)
    dtype = ml_dtypes.bfloat16 if datatype == "BF16" else triton_to_np_dtype(datatype)
    return np.asarray(values).astype(dtype)


def onnx_runtime(path: Path, feeds: Arrays) -> dict[str, Array]:
    """What ONNX Runtime itself makes of a file, without any of our code."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    texts = {name: _as_text(array) for name, array in feeds.items()}
    return dict(zip(names, session.run(names, texts), strict=True))


def _as_text(array: Array) -> Array:
    if array.dtype != object:
        return array
    made = np.empty(array.size, object)
    made[:] = [value.decode() for value in array.ravel().tolist()]
    return made.reshape(array.shape)


def assert_same(ours: Array, theirs: Array) -> None:
    """Equal types, shapes and values, floats within 1e-4."""
    if ours.dtype == object:
        found = [one.decode() if isinstance(one, bytes) else one for one in ours.ravel().tolist()]
        wanted = [one.decode() if isinstance(one, bytes) else one for one in theirs.ravel().tolist()]
        assert (ours.shape, found) == (theirs.shape, wanted)
        return
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if ours.dtype.kind in "biu":
        assert ours.tolist() == theirs.tolist()
    else:
        np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), atol=1e-4, rtol=1e-4)


# Ways to ask


class Refused(Exception):
    """An error that a server answered. `status`: an HTTP status, or the name of a gRPC one."""

    def __init__(self, status: int | str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message

    @property
    def kind(self) -> str:
        """The status as gRPC has it, with all of 4xx that mean a bad request as one."""
        if isinstance(self.status, str):
            return self.status
        return _KINDS[self.status]


_KINDS = {
    **dict.fromkeys((400, 413, 415, 422), "INVALID_ARGUMENT"),
    **{404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE"},
    504: "DEADLINE_EXCEEDED",
}


@dataclass(frozen=True, slots=True)
class Ask:
    """`types`: datatypes by input, where they are not what the arrays have; `outputs`: parameters by name, None for all."""

    model: str
    inputs: Arrays
    outputs: Mapping[str, Mapping[str, Any]] | None = None
    id: str = ""
    version: str = ""
    types: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, str, list[int], Array]]:
        for name, array in self.inputs.items():
            datatype = self.types.get(name) or np_to_triton_dtype(array.dtype)
            yield name, datatype, list(self.shapes.get(name, array.shape)), array


@dataclass(frozen=True, slots=True)
class Told:
    """An answer, however it came."""

    model: str
    version: str
    id: str
    outputs: dict[str, Array]


class Way(Protocol):
    """Raises Refused."""

    def __call__(self, ask: Ask) -> Told: ...


def raw_bytes(array: Array) -> bytes:
    """A tensor as it travels."""
    if array.dtype != object:
        return array.tobytes()
    packed: bytes = serialize_byte_tensor(array).item() if array.size else b""
    return packed


def array_from(datatype: str, shape: Sequence[int], data: bytes) -> Array:
    if datatype == "BYTES":
        return np.asarray(deserialize_bytes_tensor(data), object).reshape(tuple(shape))
    dtype = ml_dtypes.bfloat16 if datatype == "BF16" else triton_to_np_dtype(datatype)
    return np.frombuffer(data, dtype).reshape(tuple(shape))


class HttpJson:
    """No client library at all: JSON, as the protocol's text has it."""

    def __init__(self, server: Server) -> None:
        self._client = httpx.Client(base_url=server.url, timeout=PATIENCE)

    def __call__(self, ask: Ask) -> Told:
        inputs = [
            {"name": name, "datatype": datatype, "shape": shape, "data": _json_values(array)}
            for name, datatype, shape, array in ask.tensors()
        ]
        body: dict[str, Any] = {"inputs": inputs, "parameters": dict(ask.parameters)}
        if ask.id:
            body["id"] = ask.id
        if ask.outputs is not None:
            body["outputs"] = [{"name": name, "parameters": dict(said)} for name, said in ask.outputs.items()]
        version = f"/versions/{ask.version}" if ask.version else ""
        answer = self._client.post(f"/v2/models/{ask.model}{version}/infer", content=json.dumps(body))
        said = answer.json()
        if answer.status_code != 200:
            raise Refused(answer.status_code, said["error"])
        outputs = {one["name"]: _from_json(one) for one in said["outputs"]}
        return Told(said["model_name"], said["model_version"], said.get("id", ""), outputs)

    def close(self) -> None:
        self._client.close()


def _json_values(array: Array) -> list[Any]:
    if array.dtype == object:
        return [value.decode() for value in array.ravel().tolist()]
    if array.dtype == ml_dtypes.bfloat16:
        array = array.astype(np.float32)
    values: list[Any] = array.ravel().tolist()
    return values


def _from_json(output: Mapping[str, Any]) -> Array:
    if output["datatype"] == "BYTES":
        values = np.empty(len(output["data"]), object)
        values[:] = [value.encode() for value in output["data"]]
        return values.reshape(tuple(output["shape"]))
    dtype = ml_dtypes.bfloat16 if output["datatype"] == "BF16" else triton_to_np_dtype(output["datatype"])
    return np.array(output["data"], dtype).reshape(tuple(output["shape"]))


class TritonHttp:
    """tritonclient over HTTP, tensors in binary; `later`: by `async_infer`."""

    def __init__(self, server: Server, *, later: bool = False) -> None:
        address = server.url.removeprefix("http://")
        self.client = triton_http.InferenceServerClient(address, connection_timeout=PATIENCE, network_timeout=PATIENCE)
        self._later = later

    def __call__(self, ask: Ask) -> Told:
        inputs = triton_inputs(triton_http, ask)
        said = {
            "model_version": ask.version,
            "outputs": triton_outputs(triton_http, ask),
            "request_id": ask.id,
            "parameters": dict(ask.parameters) or None,
        }
        try:
            if self._later:
                result = self.client.async_infer(ask.model, inputs, **said).get_result(timeout=PATIENCE)
            else:
                result = self.client.infer(ask.model, inputs, **said)
        except InferenceServerException as error:
            raise refused(error) from None
        response = result.get_response()
        arrays = {one["name"]: result.as_numpy(one["name"]) for one in response["outputs"]}
        return Told(response["model_name"], response["model_version"], response.get("id", ""), arrays)

    def close(self) -> None:
        self.client.close()


class TritonGrpc:
    """tritonclient over gRPC, tensors raw; `later`: by `async_infer`."""

    def __init__(self, server: Server, *, later: bool = False) -> None:
        self.client = triton_grpc.InferenceServerClient(server.grpc)
        self._later = later

    def __call__(self, ask: Ask) -> Told:
        inputs = triton_inputs(triton_grpc, ask)
        said = {
            "model_version": ask.version,
            "outputs": triton_outputs(triton_grpc, ask),
            "request_id": ask.id,
            "client_timeout": PATIENCE,
            "parameters": dict(ask.parameters) or None,
        }
        try:
            result = self._wait(ask, inputs, said) if self._later else self.client.infer(ask.model, inputs, **said)
        except InferenceServerException as error:
            raise refused(error) from None
        response = result.get_response()
        arrays = {one.name: result.as_numpy(one.name) for one in response.outputs}
        return Told(response.model_name, response.model_version, response.id, arrays)

    def _wait(self, ask: Ask, inputs: Any, said: Mapping[str, Any]) -> Any:
        arrived = threading.Event()
        got: list[Any] = []

        def callback(result: Any, error: Any) -> None:
            got.extend((result, error))
            arrived.set()

        self.client.async_infer(ask.model, inputs, callback, **said)
        assert arrived.wait(PATIENCE)
        result, error = got
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        self.client.close()


class GrpcTyped:
    """The plain stub, with tensors in the typed fields of the message."""

    def __init__(self, server: Server) -> None:
        self._channel = grpc.insecure_channel(server.grpc)
        self._stub = GRPCInferenceServiceStub(self._channel)

    def __call__(self, ask: Ask) -> Told:
        request = pb.ModelInferRequest(model_name=ask.model, model_version=ask.version, id=ask.id)
        for name, datatype, shape, array in ask.tensors():
            tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
            contents = _CONTENTS[np_to_triton_dtype(array.dtype)]
            getattr(tensor.contents, contents).extend(array.ravel().tolist())
        for name, said in (ask.outputs or {}).items():
            wanted = request.outputs.add(name=name)
            for key, value in said.items():
                set_parameter(wanted.parameters[key], value)
        for key, value in ask.parameters.items():
            set_parameter(request.parameters[key], value)
        try:
            response = self._stub.ModelInfer(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details() or "") from None
        arrays = {
            one.name: array_from(one.datatype, one.shape, raw)
            for one, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        return Told(response.model_name, response.model_version, response.id, arrays)

    def close(self) -> None:
        self._channel.close()


def set_parameter(into: Any, value: Any) -> None:
    kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
    setattr(into, kind, value)


def triton_inputs(library: Any, ask: Ask) -> list[Any]:
    """What a request sends, as `tritonclient.http` or `.grpc` has it; shape and type may lie about the data."""
    inputs = []
    for name, datatype, shape, array in ask.tensors():
        tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensor.set_shape(shape)
        if datatype != tensor.datatype():
            _rename_type(tensor, datatype)
        inputs.append(tensor)
    return inputs


def triton_outputs(library: Any, ask: Ask) -> list[Any] | None:
    """What a request wants, likewise."""
    if ask.outputs is None:
        return None
    return [
        library.InferRequestedOutput(name, class_count=said.get("classification", 0))
        for name, said in ask.outputs.items()
    ]


def _rename_type(tensor: Any, datatype: str) -> None:
    if isinstance(tensor, triton_grpc.InferInput):
        tensor._input.datatype = datatype
    else:
        tensor._datatype = datatype


def refused(error: InferenceServerException) -> Refused:
    """What a client of Triton raised, in one form for both transports."""
    status = str(error.status())
    if status.startswith("StatusCode."):
        return Refused(status.removeprefix("StatusCode."), error.message())
    return Refused(int(status), error.message())


WAYS: dict[str, Callable[[Server], Any]] = {
    "http-json": HttpJson,
    "http-binary": TritonHttp,
    "http-async": lambda server: TritonHttp(server, later=True),
    "grpc-raw": TritonGrpc,
    "grpc-async": lambda server: TritonGrpc(server, later=True),
    "grpc-typed": GrpcTyped,
}


@contextmanager
def ways_to(server: Server, names: Sequence[str] = tuple(WAYS)) -> Iterator[dict[str, Way]]:
    """All ways to ask a server, closed in the end."""
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for name in names:
            way = WAYS[name](server)
            stack.callback(way.close)
            ways[name] = way
        yield ways
