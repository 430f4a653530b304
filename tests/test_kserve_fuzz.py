"""Whatever arrives over KServe v2, the answer is an inference or an error of the caller's: never a crash."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tritonclient.grpc import service_pb2 as pb
from visionpool.errors import RequestError
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.budget import ByteBudget
from visionpool_server.api.kserve.compression import read_decoded, wanted_coding
from visionpool_server.api.kserve.datatypes import DTYPES, join_bytes, to_buffer
from visionpool_server.api.kserve.grpc import SERVICE_NAME
from visionpool_server.api.kserve.grpc_wire import growing_bytes
from visionpool_server.api.kserve.http_codec import head_size_of, json_bytes, read_request, write_response
from visionpool_server.api.kserve.messages import InferRequest, InferResponse, OutputTensor
from visionpool_server.api.kserve.shared_memory import SEGMENTS

from tests.kserve_models import operator, write_yaml
from tests.kserve_stand_in import StandIn, application, document, echoed, serving
from tests.real_server import Server, picture, write_model
from tests.real_server import serving as serving_models

LIMITS = BodyLimits(max_bytes=2**20, timeout=5, budget=ByteBudget(2**26))
FUZZ = settings(max_examples=300, deadline=None, derandomize=True, database=None)
MORE = settings(FUZZ, max_examples=600)
FEW = settings(FUZZ, max_examples=60)

VALID = {
    "id": "7",
    "parameters": {"binary_data_output": True, "priority": 1},
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "y", "datatype": "BYTES", "shape": [2], "data": ["a", "ü"]},
        {"name": "z", "datatype": "UINT8", "shape": [2, 2], "data": [[1, 2], [3, 4]]},
    ],
    "outputs": [{"name": "x", "parameters": {"binary_data": False, "classification": 3}}, {"name": "z"}],
}
HEAD = json.dumps(VALID).encode()
BODY = HEAD + np.array([1.0, np.nan], np.float32).tobytes()

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
sizes = st.integers(-1, 5) | st.sampled_from([2**31 - 1, 2**31, 2**63, 2**64])
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "shared_memory_region", "a"]),
    st.integers(-1, 20) | scalars | values,
    max_size=3,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", ""]) | values,
        "datatype": st.sampled_from([*DTYPES, "FP8"]) | values,
        "shape": st.lists(sizes, max_size=4) | values,
        "parameters": parameters | values,
        "data": st.lists(scalars, max_size=6) | values,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3) | values},
    optional={"id": scalars | values, "parameters": parameters, "outputs": st.lists(tensors, max_size=3) | values},
)


def survives(body: bytes, head_size: int) -> None:
    """Reads a request and answers with its own inputs: all of it either works, or is the caller's fault."""
    with contextlib.suppress(RequestError):
        request = read_request("m", "", body, head_size)
        response = InferResponse("m", "1", [echoed(tensor) for tensor in request.inputs], request.id)
        assert json_bytes(request, response) >= 0
        answer, size = write_response(request, response)
        said = json.loads(answer[:size])
        tails = sum(output.get("parameters", {}).get("binary_data_size", 0) for output in said["outputs"])
        assert len(answer) == (len(answer) if size is None else size) + tails


class TestCodec:
    @given(st.binary(max_size=300), st.integers(0, 300))
    @FUZZ
    def test_any_bytes(self, body: bytes, head_size: int) -> None:
        survives(body, min(head_size, len(body)))

    @given(requests, st.binary(max_size=40))
    @FUZZ
    def test_any_json_of_about_the_right_form(self, said: dict[str, Any], tail: bytes) -> None:
        head = json.dumps(said).encode()
        survives(head + tail, len(head))

    @given(st.data())
    @FUZZ
    def test_a_valid_request_with_a_part_replaced(self, data: st.DataObject) -> None:
        said = json.loads(HEAD)
        part: Any = said
        while True:
            key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
            if not part[key] or not isinstance(part[key], dict | list) or data.draw(st.booleans()):
                break
            part = part[key]
        part[key] = data.draw(values | sizes | parameters)
        head = json.dumps(said).encode()
        survives(head + BODY[len(HEAD) :], len(head))

    @given(st.integers(0, len(BODY)), st.integers(0, 20), st.binary(max_size=20), st.integers(-3, 3))
    @FUZZ
    def test_a_valid_request_with_bytes_replaced(self, at: int, count: int, put: bytes, shift: int) -> None:
        body = BODY[:at] + put + BODY[at + count :]
        survives(body, max(0, min(len(HEAD) + shift, len(body))))

    @given(st.binary(max_size=30), st.integers(0, 1000))
    @FUZZ
    def test_any_header(self, header: bytes, size: int) -> None:
        with contextlib.suppress(RequestError):
            assert 0 <= head_size_of(header, size) <= size
        assert wanted_coding(header) in (None, "gzip", "deflate")

    @given(st.sampled_from(sorted(set(DTYPES) - {"BYTES", "BOOL"})), st.binary(max_size=64))
    @FUZZ
    def test_any_output_can_be_written(self, datatype: str, data: bytes) -> None:
        count = len(data) // DTYPES[datatype].itemsize
        tensor = OutputTensor("y", datatype, (count,), data[: count * DTYPES[datatype].itemsize])
        answer, _ = write_response(read_request("m", "", BODY, len(HEAD)), InferResponse("m", "1", [tensor]))
        assert b"NaN" not in answer.partition(b"}]}")[0]

    @given(st.sampled_from(["FP32", "FP64", "INT64", "UINT64"]), st.data())
    @FUZZ
    def test_numbers_survive_json_exactly(self, datatype: str, data: st.DataObject) -> None:
        dtype = DTYPES[datatype]
        numbers: Any = st.floats(allow_nan=False, allow_infinity=False, width=32 if datatype == "FP32" else 64)
        if dtype.kind in "iu":
            numbers = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        array = np.array(data.draw(st.lists(numbers, max_size=8)), dtype)
        tensor = OutputTensor("y", datatype, array.shape, to_buffer(array))
        answer, _ = write_response(InferRequest("m", "", []), InferResponse("m", "1", [tensor]))
        head = json.dumps({"inputs": json.loads(answer)["outputs"]}).encode()
        (read,) = read_request("m", "", head, len(head)).inputs
        assert isinstance(read.data, np.ndarray)
        assert read.data.tobytes() == array.tobytes()

    @given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]), st.booleans(), st.integers(0, 200))
    @FEW
    def test_any_compressed_body(self, body: bytes, coding: str, squeeze: bool, cut: int) -> None:
        sent = gzip.compress(body)[: cut + 1] if squeeze else body

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": sent}

        with LIMITS.budget.hold() as held, contextlib.suppress(RequestError):
            inflated = asyncio.run(read_decoded(receive, {b"content-encoding": coding.encode()}, LIMITS, held))
            assert not squeeze or coding == "deflate" or inflated == body

    @given(st.lists(st.binary(max_size=50), min_size=1, max_size=6), st.binary(max_size=3))
    @FEW
    def test_any_members_of_gzip_are_read_one_after_the_other(self, parts: list[bytes], tail: bytes) -> None:
        sent = b"".join(gzip.compress(part) for part in parts) + tail

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": sent}

        refused = pytest.raises(RequestError) if tail else contextlib.nullcontext()
        with LIMITS.budget.hold() as held, refused:
            assert asyncio.run(read_decoded(receive, {b"content-encoding": b"gzip"}, LIMITS, held)) == b"".join(parts)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(application(StandIn(), LIMITS)) as address:
        yield f"http://{address}"


load_all_checks()
schema = schemathesis.openapi.from_dict(document())


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_route_answers_as_it_is_documented(case: schemathesis.Case[Any], url: str) -> None:
    """Half of the models that are asked for are there."""
    said = case.path_parameters
    if "model" in said and ord(said["model"][:1] or "0") % 2:
        said["model"] = "echo"
        if "version" in said:
            said["version"] = "1"
        case.headers.pop("Inference-Header-Content-Length", None)  # at random it is never right
    response = case.call(base_url=url, timeout=30)
    assert response.status_code != 500
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    case.validate_response(response, checks=checks)


# gRPC


OURS = {"x": [1.0, 2.0, 3.0, 4.0], "z": [10.0, 20.0, 30.0, 40.0]}  # for `sum`
FINE = frozenset({"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE"})
REGION = "known"  # of REGION_SIZE bytes, where there is shared memory
REGION_SIZE = 64
METHODS = sorted(method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods)
FIELDS = [field.name for field in pb.InferTensorContents.DESCRIPTOR.fields]
_PARAMETERS = (
    *("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification", "binary_data"),
    *("priority", "timeout", "sequence_id", "color", "top_k", "score_threshold", "classes", "nothing", ""),
)
whole_numbers = st.integers(-2, 70) | st.sampled_from([2**31, 2**62, 2**63 - 1, -(2**63)])
parameter_values: list[st.SearchStrategy[Any]] = [
    st.builds(pb.InferParameter, bool_param=st.booleans()),
    st.builds(pb.InferParameter, int64_param=whole_numbers),
    st.builds(pb.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(pb.InferParameter, double_param=st.floats()),
    st.builds(pb.InferParameter, string_param=st.sampled_from([REGION, "rgb", "", "red"]) | st.text(max_size=5)),
]
infer_parameters = st.one_of(*parameter_values * 4, st.builds(pb.InferParameter))
grpc_parameters = st.dictionaries(st.sampled_from(_PARAMETERS), infer_parameters, max_size=2)
contents = st.builds(
    lambda field, count, value: pb.InferTensorContents(**{field: [_VALUES[field](value)] * count}),
    *(st.sampled_from(FIELDS), st.integers(0, 9), st.integers(0, 300)),
)
_VALUES: dict[str, Any] = {
    **dict.fromkeys(FIELDS, int),
    **{"bool_contents": bool, "fp32_contents": float, "fp64_contents": float},
    "bytes_contents": bytes,
}
tensor_names = st.sampled_from(["x", "z", "images", "output0", "result", "y", "", "nothing"])
grpc_inputs = st.builds(
    lambda content, **said: pb.ModelInferRequest.InferInputTensor(**said, **({"contents": content} if content else {})),
    st.none() | contents,
    name=tensor_names,
    datatype=st.sampled_from(["FP32", "BYTES", "UINT8"]) | st.sampled_from([*DTYPES, "FP8", ""]),
    shape=st.sampled_from([[1, 4], [2], [1, 1, 1, 3], [1, 3, 2, 2], []]) | st.lists(whole_numbers, max_size=5),
    parameters=grpc_parameters,
)
grpc_outputs = st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=tensor_names, parameters=grpc_parameters)
grpc_requests = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from(["sum", "text", "colours"]) | st.sampled_from(["nothing", ""]),
    model_version=st.sampled_from(["", "1"]) | st.text(max_size=3),
    id=st.text(max_size=5),
    parameters=grpc_parameters,
    inputs=st.lists(grpc_inputs, max_size=3),
    outputs=st.lists(grpc_outputs, max_size=2),
    raw_input_contents=st.lists(st.sampled_from([bytes(16), bytes(4), b""]) | st.binary(max_size=70), max_size=3),
)


def good_request(name: str = "", *, shared: bool = False) -> Any:
    request = pb.ModelInferRequest(model_name="sum", id=name)
    for at, (tensor, values) in enumerate(OURS.items()):
        added = request.inputs.add(name=tensor, datatype="FP32", shape=[1, 4])
        if shared:
            added.parameters["shared_memory_region"].string_param = REGION
            added.parameters["shared_memory_byte_size"].int64_param = 16
            added.parameters["shared_memory_offset"].int64_param = 16 * at
        else:
            request.raw_input_contents.append(np.array(values, np.float32).tobytes())
    return request


def lone(model: str, name: str, datatype: str, shape: list[int], raw: bytes) -> Any:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


GOOD = good_request("7").SerializeToString()
GOODS = [
    good_request(),
    good_request(shared=True),
    lone("text", "x", "BYTES", [2], join_bytes([b"a", "ü".encode()])),
    lone("colours", "images", "BYTES", [2, 1], join_bytes([picture((9, 8, 7))] * 2)),
    lone("colours", "images", "UINT8", [2, 1, 2, 3], bytes(range(12))),
    lone("colours", "images", "FP32", [1, 3, 1, 2], bytes(24)),
]
MERGED = ["outputs", "parameters", "model_version", "id", "raw_input_contents"]


class Caller:
    """Sends bytes to the methods of a server, whatever they are."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._channel = grpc.insecure_channel(server.grpc)

    def ask(self, method: str, raw: bytes) -> tuple[str, bytes]:
        """The status, and the answer's bytes."""
        try:
            call: Any = self._channel.unary_unary(f"/{SERVICE_NAME}/{method}")
            return "OK", call(raw, timeout=30)
        except grpc.RpcError as error:
            return error.code().name, b""

    def stream(self, raws: list[bytes]) -> list[Any]:
        """The answers on a stream of its own, in their order."""
        call: Any = self._channel.stream_stream(f"/{SERVICE_NAME}/ModelStreamInfer")
        return [pb.ModelStreamInferResponse.FromString(raw) for raw in call(iter(raws), timeout=30)]

    def check(self) -> None:
        """The server still computes, and has nothing to regret."""
        status, raw = self.ask("ModelInfer", GOOD)
        assert status == "OK"
        answer = pb.ModelInferResponse.FromString(raw)
        assert answer.id == "7"
        assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [11, 22, 33, 44]
        assert "Traceback" not in self._server.log()

    def close(self) -> None:
        self._channel.close()


@contextlib.contextmanager
def region(caller: Caller) -> Iterator[None]:
    """Shared memory that requests may name, where there is such a thing."""
    if not SEGMENTS.is_dir():
        yield
        return
    segment = SharedMemory(f"visionpool-{uuid4().hex}", create=True, size=REGION_SIZE)
    try:
        wanted = pb.SystemSharedMemoryRegisterRequest(name=REGION, key=segment.name, byte_size=REGION_SIZE)
        assert caller.ask("SystemSharedMemoryRegister", wanted.SerializeToString())[0] == "OK"
        yield
    finally:
        segment.close()
        segment.unlink()


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    folder = tmp_path_factory.mktemp("fuzz")
    write_model(folder / "colours")
    operator(folder / "sum", "Add", "FP32", ["n", 4], ("x", "z"))
    write_yaml(operator(folder / "text", "Identity", "BYTES", ["n"]), runtime={"backend": "onnxruntime"})
    with serving_models(folder, "--model-control-mode", "explicit", "--load-model", "*") as server:
        made = Caller(server)
        with region(made):
            yield made
        made.close()


class TestGrpc:
    @pytest.fixture(autouse=True)
    def unharmed(self, caller: Caller) -> Iterator[None]:
        yield
        caller.check()

    @given(grpc_requests)
    @FUZZ
    def test_any_message_of_about_the_right_form(self, caller: Caller, request: Any) -> None:
        status, raw = caller.ask("ModelInfer", request.SerializeToString())
        assert status in FINE
        if status == "OK":
            assert pb.ModelInferResponse.FromString(raw).id == request.id

    @given(st.data())
    @MORE
    def test_a_good_message_with_a_part_replaced(self, caller: Caller, data: st.DataObject) -> None:
        request, other = pb.ModelInferRequest(), data.draw(grpc_requests)
        request.CopyFrom(data.draw(st.sampled_from(GOODS)))
        for name in data.draw(st.lists(st.sampled_from(MERGED), unique=True)):
            request.ClearField(name)
            request.MergeFrom(_alone(other, name))
        if other.inputs:
            part = data.draw(st.sampled_from(["name", "datatype", "shape", "parameters", "contents"]))
            replaced = request.inputs[-1]
            replaced.ClearField(part)
            replaced.MergeFrom(_alone(other.inputs[0], part))
        assert caller.ask("ModelInfer", request.SerializeToString())[0] in FINE

    @given(st.integers(0, len(GOOD)), st.integers(0, 20), st.binary(max_size=20))
    @FUZZ
    def test_a_good_message_with_bytes_replaced(self, caller: Caller, at: int, count: int, put: bytes) -> None:
        assert caller.ask("ModelInfer", GOOD[:at] + put + GOOD[at + count :])[0] in FINE

    @given(st.lists(grpc_requests, min_size=1, max_size=8), st.binary(max_size=30))
    @FEW
    def test_a_stream_of_any_messages_is_answered_one_by_one(
        self, caller: Caller, requests: list[Any], noise: bytes
    ) -> None:
        last = good_request("last")
        last.parameters["triton_enable_empty_final_response"].bool_param = True
        answers = caller.stream([*(one.SerializeToString() for one in requests), noise, last.SerializeToString()])
        assert [one.infer_response.id for one in answers[:-2]] == [one.id for one in requests]
        assert all("an error of ours" not in one.error_message for one in answers)
        assert (answers[-1].error_message, answers[-1].infer_response.id) == ("", "last")
        assert answers[-1].infer_response.parameters["triton_final_response"].bool_param

    @pytest.mark.parametrize("method", METHODS)
    @given(st.binary(max_size=200))
    @FEW
    def test_any_bytes_to_any_method(self, caller: Caller, method: str, raw: bytes) -> None:
        if method == "ModelStreamInfer":
            (answer,) = caller.stream([raw])
            assert "an error of ours" not in answer.error_message
        else:
            assert caller.ask(method, raw)[0] in FINE

    @given(st.binary(max_size=200))
    @FUZZ
    def test_any_bytes_can_be_measured(self, raw: bytes) -> None:
        assert growing_bytes(raw) <= len(raw)

    @given(grpc_requests)
    @FEW
    def test_all_but_raw_tensors_grows(self, request: Any) -> None:
        tensors = sum(map(len, request.raw_input_contents))
        assert growing_bytes(request.SerializeToString()) == request.ByteSize() - tensors


def _alone(message: Any, name: str) -> Any:
    """A message with nothing but one field of another."""
    made = type(message)()
    made.CopyFrom(message)
    for field in message.DESCRIPTOR.fields:
        if field.name != name:
            made.ClearField(field.name)
    return made
