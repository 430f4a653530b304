"""KServe v2 over HTTP, on a stand-in for the protocol's logic: the codec, compression, every route, and Triton's own client
unchanged."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from visionpool.errors import InvalidRequest, QueueFull, TooLarge, UnsupportedMedia
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.budget import ByteBudget
from visionpool_server.api.kserve.compression import read_decoded, wanted_coding
from visionpool_server.api.kserve.datatypes import DTYPES, from_values, join_bytes, to_buffer
from visionpool_server.api.kserve.http_codec import head_size_of, read_request, write_response
from visionpool_server.api.kserve.messages import InferRequest, InferResponse, OutputTensor, RequestedOutput

from tests.kserve_stand_in import StandIn, application, serving

BOUND = 30.0
MEGABYTE = 2**20
X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.5]}
LIMITS = BodyLimits(max_bytes=MEGABYTE, timeout=5, budget=ByteBudget(64 * MEGABYTE))


def read(said: Any, tail: bytes = b"") -> InferRequest:
    head = json.dumps(said).encode()
    return read_request("m", "1", head + tail, len(head))


def binary(size: Any, **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": size}} | more


class TestReading:
    def test_numbers_in_json_become_an_array(self) -> None:
        request = read({"id": "7", "inputs": [X], "parameters": {"priority": 1}, "outputs": [{"name": "y"}]})
        (tensor,) = request.inputs
        assert (request.model, request.version, request.id) == ("m", "1", "7")
        assert (tensor.name, tensor.datatype, tensor.shape) == ("x", "FP32", (2,))
        assert isinstance(tensor.data, np.ndarray)
        assert tensor.data.tolist() == [1.0, 2.5]
        assert request.parameters == {"priority": 1}
        assert request.outputs == [RequestedOutput("y")]

    def test_binary_tensors_are_slices_of_the_body_and_not_copies(self) -> None:
        head = json.dumps({"inputs": [binary(8), binary(4, name="z", datatype="UINT8", shape=[4])]}).encode()
        body = head + b"12345678abcd"
        request = read_request("m", "", body, len(head))
        first, second = request.inputs
        assert isinstance(first.data, memoryview) and isinstance(second.data, memoryview)
        assert (bytes(first.data), bytes(second.data)) == (b"12345678", b"abcd")
        assert first.data.obj is body and second.data.obj is body

    def test_a_tensor_in_shared_memory_has_no_data(self) -> None:
        said = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
        (tensor,) = read({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": said}]}).inputs
        assert tensor.data is None
        assert tensor.parameters == said

    def test_what_the_protocol_does_not_know_is_ignored_and_null_is_absent(self) -> None:
        request = read({"inputs": [X | {"new": 1, "parameters": None}], "id": None, "outputs": None, "newer": {}})
        assert (request.id, request.outputs, request.inputs[0].parameters) == ("", [], {})

    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            ([], "list"),
            ({}, "no inputs"),
            ({"inputs": {}}, "inputs is an object"),
            ({"inputs": [1]}, "list of objects"),
            ({"inputs": [X] * 1025}, "at most 1024"),
            ({"inputs": [X], "outputs": [{"name": f"y{i}"} for i in range(1025)]}, "at most 1024"),
            ({"inputs": [X], "outputs": [{}]}, "no name"),
            ({"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, "true or false"),
            ({"inputs": [X], "parameters": {"binary_data_output": 1}}, "true or false"),
            ({"inputs": [X], "parameters": [1]}, "parameters is a list"),
            ({"inputs": [X], "parameters": {"a": {}}}, "parameter 'a' is an object"),
            ({"inputs": [X], "parameters": {"a": None}}, "parameter 'a' is null"),
            ({"inputs": [X], "id": 7}, "id is an integer"),
            ({"inputs": [X | {"name": ""}]}, "no name"),
            ({"inputs": [X | {"name": 1}]}, "name is an integer"),
            ({"inputs": [X | {"datatype": None}]}, "no datatype"),
            ({"inputs": [X | {"datatype": "FLOAT"}]}, "FLOAT"),
            ({"inputs": [X | {"shape": "2"}]}, "list of integers"),
            ({"inputs": [X | {"shape": [2.0]}]}, "list of integers"),
            ({"inputs": [X | {"shape": [True, 2]}]}, "list of integers"),
            ({"inputs": [X | {"shape": ["2"]}]}, "list of integers"),
            ({"inputs": [X | {"shape": [-1]}]}, "negative"),
            ({"inputs": [X | {"shape": [2**40]}]}, "beyond any tensor"),
            ({"inputs": [X | {"shape": [0, 2**30, 2**30, 2**30], "data": []}]}, "beyond any tensor"),
            ({"inputs": [X | {"shape": [3]}]}, "2 values"),
            ({"inputs": [X | {"data": "12"}]}, "data is a list"),
            ({"inputs": [X | {"data": [1.0, "2"]}]}, "a string in data"),
            (
                {"inputs": [X | {"data": [1, 2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}]},
                "only one",
            ),
            ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}]}, "only one"),
            ({"inputs": [binary(8)]}, "0 bytes are left"),
            ({"inputs": [binary(-1)]}, "binary_data_size is -1"),
            ({"inputs": [binary("8")]}, "binary_data_size is 8"),
            ({"inputs": [binary(True)]}, "binary_data_size is True"),
            ({"inputs": [binary(2**70)]}, "binary_data_size"),
        ],
    )
    def test_what_is_malformed_is_refused_with_the_reason(self, said: Any, reason: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            read(said)
        assert reason in refused.value.message

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[" * 100_000,
            b'{"inputs":' * 5_000,
            b"\xff\xfe",
            b'"\\ud800"',
            b'{"inputs": ' + b"9" * 10_000 + b"}",
        ],
    )
    def test_what_is_no_json_is_refused(self, body: bytes) -> None:
        with pytest.raises(InvalidRequest):
            read_request("m", "", body, len(body))

    def test_nan_in_json_is_refused_with_the_way_out(self) -> None:
        with pytest.raises(InvalidRequest, match="binary data"):
            read({"inputs": [X | {"data": [float("nan"), 1]}]})

    def test_bytes_behind_the_json_that_no_input_claims_are_refused(self) -> None:
        with pytest.raises(InvalidRequest, match="4 bytes behind the JSON"):
            read({"inputs": [binary(8)]}, b"12345678rest")

    @pytest.mark.parametrize("header", [b"-1", b"11", b"1.5", b"x", b"", b"+5", b"9" * 5000, b"\xb2"])
    def test_a_length_of_the_json_that_cannot_be_is_refused(self, header: bytes) -> None:
        with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length"):
            head_size_of(header, 10)

    def test_without_a_length_all_is_json(self) -> None:
        assert (head_size_of(None, 10), head_size_of(b"4", 10), head_size_of(b"10", 10)) == (10, 4, 10)


def asked(*outputs: RequestedOutput, **parameters: Any) -> InferRequest:
    return InferRequest("m", "1", [], outputs, "", parameters)


def written(request: InferRequest, *outputs: OutputTensor, number: str = "") -> tuple[dict[str, Any], bytes]:
    body, size = write_response(request, InferResponse("m", "1", outputs, number))
    return json.loads(body[:size]), b"" if size is None else body[size:]


TWO = np.array([1.5, -2.0], np.float32).tobytes()
Y = OutputTensor("y", "FP32", (2,), TWO)
Z = OutputTensor("z", "FP32", (1, 2), TWO)


class TestWriting:
    def test_json_by_default(self) -> None:
        said, tail = written(asked(), Y, number="7")
        assert said == {
            **{"model_name": "m", "model_version": "1", "id": "7"},
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1.5, -2.0]}],
        }
        assert tail == b""

    def test_binary_for_all_or_as_each_output_says(self) -> None:
        for request, expected in [
            (asked(binary_data_output=True), (True, True)),
            (asked(RequestedOutput("y", {"binary_data": True}), RequestedOutput("z")), (True, False)),
            (
                asked(RequestedOutput("y", {"binary_data": False}), RequestedOutput("z"), binary_data_output=True),
                (False, True),
            ),
        ]:
            said, tail = written(request, Y, Z)
            sizes = tuple(output.get("parameters", {}).get("binary_data_size") for output in said["outputs"])
            assert sizes == tuple(8 if is_binary else None for is_binary in expected)
            assert [("data" in output) for output in said["outputs"]] == [not is_binary for is_binary in expected]
            assert tail == TWO * sum(expected)

    def test_an_output_in_shared_memory_has_no_parameters(self) -> None:
        """Triton's C++ client, and so perf_analyzer, refuses any but binary_data_size."""
        where = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
        said, tail = written(asked(binary_data_output=True), OutputTensor("y", "FP32", (2,), None, where))
        assert said["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2]}]
        assert tail == b""

    @pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"BYTES", "BOOL"}))
    def test_every_datatype_comes_through_json_both_ways(self, datatype: str) -> None:
        array = from_values("y", datatype, (3,), [0, 1, 100])
        said, _ = written(asked(), OutputTensor("y", datatype, (3,), to_buffer(array)))
        assert said["outputs"][0]["data"] == [0, 1, 100]
        again = read({"inputs": [said["outputs"][0]]}).inputs[0].data
        assert isinstance(again, np.ndarray)
        assert again.tobytes() == array.tobytes()

    def test_booleans_are_booleans(self) -> None:
        said, _ = written(asked(), OutputTensor("y", "BOOL", (2,), b"\1\0"))
        assert said["outputs"][0]["data"] == [True, False]

    def test_no_tensor_is_too_empty(self) -> None:
        for datatype in DTYPES:
            said, _ = written(asked(), OutputTensor("y", datatype, (0, 3), b""))
            assert (said["outputs"][0]["shape"], said["outputs"][0]["data"]) == ([0, 3], [])
            said, tail = written(asked(binary_data_output=True), OutputTensor("y", datatype, (0, 3), b""))
            assert (said["outputs"][0]["parameters"], tail) == ({"binary_data_size": 0}, b"")

    def test_floats_keep_their_value(self) -> None:
        values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
        said, _ = written(asked(), OutputTensor("y", "FP32", (1000,), values.tobytes()))
        assert (np.array(said["outputs"][0]["data"], np.float32) == values).all()

    @pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
    def test_what_is_no_number_is_null(self, datatype: str) -> None:
        values = np.array([np.nan, np.inf, -np.inf, 1.0]).astype(DTYPES[datatype])
        said, _ = written(asked(), OutputTensor("y", datatype, (4,), values.tobytes()))
        assert said["outputs"][0]["data"] == [None, None, None, 1.0]

    def test_bytes_are_strings_or_else_an_error_with_the_way_out(self) -> None:
        said, _ = written(asked(), OutputTensor("y", "BYTES", (2,), join_bytes([b"", "ünï".encode()])))
        assert said["outputs"][0]["data"] == ["", "ünï"]
        with pytest.raises(InvalidRequest, match="binary_data"):
            written(asked(), OutputTensor("y", "BYTES", (1,), join_bytes([b"\xff"])))


async def received(body: bytes, limits: BodyLimits = LIMITS, **headers: str) -> bytes:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    with limits.budget.hold() as held:
        return await read_decoded(receive, named, limits, held)


def inflated(body: bytes, coding: str, limits: BodyLimits = LIMITS) -> bytes:
    return asyncio.run(received(body, limits, content_encoding=coding))


class TestCompression:
    @pytest.mark.parametrize("size", [0, 1, 65_536, MEGABYTE - 1, MEGABYTE])
    @pytest.mark.parametrize("coding", ["gzip", "deflate", "GZIP", " gzip "])
    def test_bodies_are_inflated(self, coding: str, size: int) -> None:
        for body in (bytes(size), np.random.default_rng(0).bytes(size)):
            squeezed = gzip.compress(body, 1) if "g" in coding.lower()[:2] else zlib.compress(body, 1)
            assert inflated(squeezed, coding, BodyLimits(2 * MEGABYTE)) == body

    def test_a_body_in_no_coding_stays_as_it_is(self) -> None:
        assert asyncio.run(received(b"x")) == inflated(b"x", "identity") == b"x"

    def test_a_bomb_is_refused_before_it_fills_the_memory(self) -> None:
        bomb = gzip.compress(bytes(400 * MEGABYTE), 9)
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge):
                inflated(bomb, "gzip")
            assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
        finally:
            tracemalloc.stop()
        assert LIMITS.budget.used == 0

    def test_what_is_inflated_counts_against_the_budget(self) -> None:
        limits = BodyLimits(8 * MEGABYTE, budget=ByteBudget(MEGABYTE))
        with pytest.raises(QueueFull):
            inflated(gzip.compress(bytes(4 * MEGABYTE)), "gzip", limits)
        assert limits.budget.used == 0

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_what_is_no_such_data_is_refused(self, coding: str) -> None:
        good = gzip.compress(b"hello" * 100) if coding == "gzip" else zlib.compress(b"hello" * 100)
        broken = bytearray(good)
        broken[-3] ^= 1  # the checksum
        twice = [] if coding == "gzip" else [good + good]  # gzip may have several members
        for body in (b"", b"hello", good[:-1], good[:5], bytes(broken), good + b"x", *twice):
            with pytest.raises(InvalidRequest):
                inflated(body, coding)

    @pytest.mark.parametrize("coding", ["br", "gzip, deflate", "x" * 1000])
    def test_another_coding_is_refused(self, coding: str) -> None:
        with pytest.raises(UnsupportedMedia, match="gzip or deflate"):
            inflated(b"x", coding)

    @pytest.mark.parametrize(
        ("accept", "coding"),
        [
            (b"gzip", "gzip"),
            (b"deflate", "deflate"),
            (b"Gzip", "gzip"),
            (b"gzip, deflate, br", "gzip"),
            (b"gzip;q=0.5, deflate", "deflate"),
            (b"gzip;q=0.5, identity", None),
            (b"gzip;q=0", None),
            (b"gzip;q=x", None),
            (b"gzip; q=0.2 , deflate;q=0.1", "gzip"),
            (b"identity", None),
            (b"*", None),
            (b"br", None),
            (b"", None),
            (b"\xff;q=\xb2,,;", None),
        ],
    )
    def test_answers_are_compressed_only_as_the_client_names_it(self, accept: bytes, coding: str | None) -> None:
        assert wanted_coding(accept) == coding


@pytest.fixture(scope="module")
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture(scope="module")
def address(stand_in: StandIn) -> Iterator[str]:
    with serving(application(stand_in, LIMITS)) as address:
        yield address


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{address}", timeout=BOUND, headers={"Accept-Encoding": "identity"}) as client:
        yield client


INFER = "/v2/models/echo/infer"


class TestRoutes:
    def test_inference_in_json(self, http: httpx.Client) -> None:
        answer = http.post(INFER, json={"id": "a", "inputs": [X]})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert "inference-header-content-length" not in answer.headers
        assert answer.json() == {"model_name": "echo", "model_version": "1", "id": "a", "outputs": [X]}

    def test_inference_in_binary_of_a_version(self, http: httpx.Client, stand_in: StandIn) -> None:
        head = json.dumps({"inputs": [binary(8)], "parameters": {"binary_data_output": True}}).encode()
        said = {"Inference-Header-Content-Length": str(len(head))}
        answer = http.post("/v2/models/echo/versions/1/infer", content=head + TWO, headers=said)
        assert answer.headers["content-type"] == "application/octet-stream"
        size = int(answer.headers["inference-header-content-length"])
        assert json.loads(answer.content[:size])["outputs"][0]["parameters"] == {"binary_data_size": 8}
        assert answer.content[size:] == TWO
        assert stand_in.asked[-1].version == "1"

    def test_large_json_both_ways(self, http: httpx.Client) -> None:
        values = list(range(100_000))
        tensor = {"name": "x", "datatype": "INT32", "shape": [10, 10_000], "data": values}
        answer = http.post(INFER, json={"inputs": [tensor]})
        assert answer.json()["outputs"] == [tensor]

    @pytest.mark.parametrize(
        ("path", "status", "said"),
        [
            (INFER, 400, "no inputs"),
            ("/v2/models/nobody/infer", 404, "no model"),
            ("/v2/models/echo/versions/9/infer", 404, "no model"),
            ("/v2/models/gone/infer", 503, "not ready"),
            ("/v2/models/busy/infer", 429, "full"),
            ("/v2/models/broken/infer", 500, "an error of ours"),
        ],
    )
    def test_errors_have_the_form_that_clients_of_the_protocol_read(
        self, http: httpx.Client, path: str, status: int, said: str
    ) -> None:
        answer = http.post(path, json={} if path == INFER else {"inputs": [X]})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
        assert set(answer.json()) == {"error"}
        assert said in answer.json()["error"]
        assert "secret" not in answer.text
        assert answer.headers.get("retry-after") == {429: "3", 503: "1"}.get(status)

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", INFER, "POST"),
            ("PUT", "/v2/logging", "GET, POST"),
            ("POST", "/v2", "GET"),
            ("PROPFIND", "/v2/health/live", "GET"),
            ("POST", "/v2/models/echo/versions/1/ready", "GET"),
            ("GET", "/v2/repository/index", "POST"),
        ],
    )
    def test_another_method_is_refused_with_the_right_one(
        self, http: httpx.Client, method: str, path: str, allowed: str
    ) -> None:
        answer = http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert allowed in answer.json()["error"]

    @pytest.mark.parametrize("path", ["/v2/nothing", "/v2/models", "/v2/models//infer", "/v2/models/a/b/infer"])
    def test_what_is_not_there_is_404_in_the_same_form(self, http: httpx.Client, path: str) -> None:
        answer = http.post(path, json={})
        assert answer.status_code == 404
        assert "/docs" in answer.json()["error"]

    def test_a_body_over_the_limit_is_413(self, http: httpx.Client) -> None:
        assert http.post(INFER, content=bytes(MEGABYTE + 1)).status_code == 413
        bomb = gzip.compress(bytes(MEGABYTE + 1))
        assert http.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"}).status_code == 413
        assert LIMITS.budget.used == 0

    def test_health(self, http: httpx.Client, stand_in: StandIn) -> None:
        assert http.get("/v2/health/live").json() == {"live": True}
        assert http.get("/v2/health/ready").json() == {"ready": True}
        assert http.head("/v2/health/ready").status_code == 200
        assert http.get("/v2/models/echo/ready").json() == {"name": "echo", "ready": True}
        stand_in.is_ready = False
        try:
            assert http.get("/v2/health/ready").status_code == 503
        finally:
            stand_in.is_ready = True

    def test_64_bit_integers_are_numbers_and_enumerations_names(self, http: httpx.Client) -> None:
        config = http.get("/v2/models/echo/config").json()
        assert config["input"][0]["data_type"] == "TYPE_FP32"
        assert config["input"][0]["dims"] == [3, 32, 32]
        assert config["instance_group"][0]["kind"] == "KIND_CPU"
        assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 2**40
        assert config["parameters"] == {"family": {"string_value": "yolo"}}
        assert (config["platform"], config["model_warmup"], config["metric_tags"]) == ("", [], {})
        assert "sequence_batching" not in config
        (statistics,) = http.get("/v2/models/echo/stats").json()["model_stats"]
        assert statistics["inference_count"] == 2**53
        assert statistics["inference_stats"]["success"] == {"count": 3, "ns": 2**60}
        assert statistics["inference_stats"]["cache_miss"] == {"count": 0, "ns": 0}
        assert statistics["batch_stats"][0]["compute_output"] == {"count": 0, "ns": 0}

    def test_other_forms_of_the_repository(self, http: httpx.Client) -> None:
        assert http.post("/v2/repository/index", json={"ready": True}).json() == [
            {"name": "echo", "version": "1", "state": "READY"}
        ]
        assert http.post("/v2/repository/any/index").status_code == 501
        assert http.post("/v2/repository/any/models/echo/load").status_code == 501
        assert http.post("/v2/repository/index", json={"ready": "yes"}).status_code == 400
        assert http.post("/v2/repository/models/echo/load", json={"parameters": {"a": {}}}).status_code == 400

    def test_settings(self, http: httpx.Client) -> None:
        answer = http.post(
            "/v2/trace/setting", json={"trace_level": ["TIMESTAMPS"], "trace_rate": 5, "trace_file": None}
        )
        assert answer.json() == {"trace_level": ["TIMESTAMPS"], "trace_rate": "5", "trace_file": ""}
        assert http.post("/v2/trace/setting", json={"trace_rate": {}}).status_code == 400
        assert http.post("/v2/logging", json={"log_info": [1]}).status_code == 400
        assert http.get("/v2/logging").json() == {"log_file": "", "log_info": True, "log_verbose_level": 0}

    def test_a_client_that_hangs_up_cancels_its_inference(self, address: str, stand_in: StandIn) -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"http://{address}/v2/models/hanging/infer", json={"inputs": [X]}, timeout=0.3)
        assert stand_in.cancelled.wait(BOUND)
        assert LIMITS.budget.used == 0


ARRAYS: Mapping[str, NDArray[Any]] = {
    "FP32": np.array([[1.5, -2.0, 3.0]], np.float32),
    "FP16": np.array([0.5, 1e4], np.float16),
    "FP64": np.array([np.pi]),
    "INT64": np.array([-(2**63), 2**63 - 1]),
    "UINT8": np.arange(256, dtype=np.uint8).reshape(16, 16),
    "BOOL": np.array([True, False]),
    "BYTES": np.array([b"a", "ü€".encode(), b""], object),
}


class TestTritonClient:
    @pytest.fixture
    def client(self, address: str) -> Iterator[Any]:
        client = triton.InferenceServerClient(address)
        yield client
        client.close()

    @pytest.mark.parametrize("binary_out", [True, False])
    @pytest.mark.parametrize("binary_in", [True, False])
    @pytest.mark.parametrize("datatype", sorted(ARRAYS))
    def test_tensors_come_back_as_they_went(
        self, client: Any, datatype: str, binary_in: bool, binary_out: bool
    ) -> None:
        array = ARRAYS[datatype]
        tensor = triton.InferInput("x", list(array.shape), datatype).set_data_from_numpy(array, binary_in)
        wanted = [triton.InferRequestedOutput("x", binary_data=binary_out)]
        result = client.infer("echo", [tensor], outputs=wanted, request_id="id-7", model_version="1")
        got = result.as_numpy("x")
        if datatype == "BYTES" and not binary_out:
            got = np.array([value.encode() for value in got], object)
        assert got.dtype == array.dtype
        assert (got == array).all()
        assert result.get_response()["id"] == "id-7"

    @pytest.mark.parametrize("back", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("there", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("size", [10, 100_000])
    def test_compression(self, client: Any, there: str | None, back: str | None, size: int) -> None:
        array = np.arange(size, dtype=np.float32)
        tensor = triton.InferInput("x", [size], "FP32").set_data_from_numpy(array)
        result = client.infer(
            "echo", [tensor], request_compression_algorithm=there, response_compression_algorithm=back
        )
        assert (result.as_numpy("x") == array).all()

    def test_everything_else(self, client: Any, stand_in: StandIn) -> None:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("echo") and not client.is_model_ready("gone") and not client.is_model_ready("no")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata("echo", "1")["inputs"][0]["shape"] == [-1, 3, 32, 32]
        assert client.get_model_config("echo")["max_batch_size"] == 8
        assert len(client.get_inference_statistics()["model_stats"]) > 1
        assert client.get_inference_statistics("echo")["model_stats"][0]["name"] == "echo"
        assert client.get_model_repository_index()[0] == {"name": "echo", "version": "1", "state": "READY"}
        client.load_model("echo", config="{}", files={"file:1/model.onnx": b"\0weights"})
        client.unload_model("echo", unload_dependents=True)
        assert stand_in.controlled[-2:] == [
            ("load", "echo", {"config": "{}", "file:1/model.onnx": "AHdlaWdodHM="}),
            ("unload", "echo", {"unload_dependents": True}),
        ]
        assert client.get_trace_settings("echo") == client.update_trace_settings("echo", {})
        assert client.update_log_settings({"log_info": False})["log_info"] is False
        assert client.update_log_settings({"log_info": True}) == client.get_log_settings()

    def test_shared_memory(self, client: Any) -> None:
        client.register_system_shared_memory("a region", "/key", 4096, offset=64)
        assert client.get_system_shared_memory_status() == [
            {"name": "a region", "key": "/key", "offset": 64, "byte_size": 4096}
        ]
        assert len(client.get_system_shared_memory_status("a region")) == 1
        tensor = triton.InferInput("x", [2], "FP32")
        tensor.set_shared_memory("a region", 8)
        result = client.infer("echo", [tensor])
        assert result.get_output("x") == {"name": "x", "datatype": "FP32", "shape": [2]}
        client.unregister_system_shared_memory("a region")
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == client.get_cuda_shared_memory_status() == []
        client.unregister_cuda_shared_memory()
        with pytest.raises(triton.InferenceServerException, match="not served") as refused:
            client.register_cuda_shared_memory("r", b"aGFuZGxl".decode(), 0, 64)
        assert refused.value.status() == "501"

    def test_errors_are_read_from_the_answer(self, client: Any) -> None:
        tensor = triton.InferInput("x", [1], "FP32").set_data_from_numpy(np.zeros(1, np.float32))
        with pytest.raises(triton.InferenceServerException, match="no model 'nobody'") as refused:
            client.infer("nobody", [tensor])
        assert refused.value.status() == "404"

    def test_the_asynchronous_client(self, address: str) -> None:
        async def ask() -> None:
            async with triton_aio.InferenceServerClient(address) as client:
                assert await client.is_server_ready()
                assert (await client.get_model_metadata("echo"))["name"] == "echo"
                for datatype, array in ARRAYS.items():
                    tensor = triton_aio.InferInput("x", list(array.shape), datatype).set_data_from_numpy(array)
                    result = await client.infer("echo", [tensor], request_id="é")
                    assert (result.as_numpy("x") == array).all()
                large = np.zeros(50_000, np.float32)
                tensor = triton_aio.InferInput("x", [50_000], "FP32").set_data_from_numpy(large)
                result = await client.infer("echo", [tensor], request_compression_algorithm="gzip")
                assert (result.as_numpy("x") == large).all()

        asyncio.run(ask())
