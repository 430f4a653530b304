"""NVIDIA's own tritonclient, unchanged, against a real server: every call that it has, over HTTP and over gRPC."""

from __future__ import annotations

import base64
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.auth import BasicAuth
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, serialize_byte_tensor

from tests import tiny_models
from tests.conftest import Serve
from tests.kserve_models import PATIENCE, Array, array_of, operator, refused, weights, write_yaml
from tests.real_server import COLOURS, Server, picture, serving, shares, write_model
from tests.tiny_models import Graph

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
MEGABYTE = 2**20


@dataclass(frozen=True, slots=True)
class Triton:
    """A client of one transport, and what its library has."""

    kind: str
    library: ModuleType
    client: Any
    server: Server

    def inputs(self, **arrays: Array) -> list[Any]:
        made = []
        for name, array in arrays.items():
            tensor = self.library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            made.append(tensor.set_data_from_numpy(array) or tensor)
        return made

    def infer(self, model: str, /, outputs: Sequence[Any] | None = None, **arrays: Array) -> Any:
        return self.client.infer(model, self.inputs(**arrays), outputs=outputs)

    def output(self, name: str, **said: Any) -> Any:
        return self.library.InferRequestedOutput(name, **said)

    def told(self, message: Any, answer: Any) -> Any:
        """An answer as the protocol's message, whichever transport brought it."""
        return ParseDict(answer, message) if isinstance(answer, dict | list) else answer

    def refused(self, kind: str, call: Callable[[], Any]) -> str:
        """The text of the error that a call must raise."""
        with pytest.raises(InferenceServerException) as caught:
            call()
        error = refused(caught.value)
        assert error.kind == kind, error
        return error.message


def library_of(kind: str) -> ModuleType:
    library: ModuleType = triton_http if kind == "http" else triton_grpc
    return library


@contextmanager
def connected(server: Server, kind: str, **options: Any) -> Iterator[Triton]:
    library = library_of(kind)
    address = server.url.removeprefix("http://") if kind == "http" else server.grpc
    with library.InferenceServerClient(address, **options) as client:
        yield Triton(kind, library, client, server)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    for name, said in (
        ("pairs", {}),
        ("fours", {"batching": {"max_batch_size": 4}}),
        ("twos", {"batching": {"sizes": [2]}}),
        ("reloaded", {}),
    ):
        tiny_models.two_by_two(weights(folder / name))
        write_yaml(folder / name, **said)
    for datatype in ("FP16", "BF16", "INT8"):
        operator(folder / f"echo_{datatype}", "Identity", datatype, ["n", "m"])
    write_yaml(operator(folder / "text", "Identity", "BYTES", ["n", "m"]), runtime={"backend": "onnxruntime"})
    write_yaml(operator(folder / "named", "Identity", "FP32", ["n", 3]), labels=["cat", "dog", "cow"])
    operator(folder / "unbatched", "Neg", "INT32", [5])
    _text_sums(folder / "text_sums")
    one = {"workers": 1, "batching": {"max_batch_size": 1, "max_queue_size": 1}}
    write_model(folder / "colours")
    write_model(folder / "narrow", {"latency_ms": 300}, **one)
    write_model(folder / "slow", {"latency_ms": 2000}, **one)
    write_model(folder / "line", {"latency_ms": 150}, workers=1)
    write_model(folder / "queue", {"latency_ms": 250}, workers=1, batching={"max_batch_size": 1})
    write_model(folder / "failing", {"fail": [250, 0, 0]})
    (folder / "broken").mkdir()
    (folder / "broken" / "model.onnx").write_bytes(b"no model at all")
    return folder


def _text_sums(folder: Path) -> Path:
    """Strings that say numbers in, strings that say their sum and difference out."""
    graph = Graph()
    strings = [graph.input(name, ["n", 3], TensorProto.STRING) for name in ("a", "b")]
    numbers = [graph.add("Cast", name, to=TensorProto.INT32) for name in strings]
    for op, name in (("Add", "total"), ("Sub", "difference")):
        graph.add("Cast", graph.add(op, *numbers), output=name, to=TensorProto.STRING)
        graph.output(name, ["n", 3], TensorProto.STRING)
    graph.save(weights(folder))
    return write_yaml(folder, runtime={"backend": "onnxruntime"}, batching={"max_batch_size": 4})


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="session")
def server(models: Path, traces: Path) -> Iterator[Server]:
    """Its models are under the clients' control; all but `broken` are loaded."""
    loaded = [f"--load-model={path.name}" for path in models.iterdir() if path.name != "broken"]
    limits = ("--model-control-mode", "explicit", "--trace-dir", traces, "--max-body-mb", 4)
    with serving(models, *loaded, *limits) as running:
        yield running


@pytest.fixture(scope="module", params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, server: Server) -> Iterator[Triton]:
    with connected(server, request.param) as client:
        yield client


@pytest.fixture
def over_grpc(server: Server) -> Iterator[Triton]:
    with connected(server, "grpc") as client:
        yield client


def pictures(*colours: tuple[int, int, int]) -> Array:
    made = np.empty(len(colours), object)
    made[:] = [picture(colour) for colour in colours]
    return made


def until(done: Callable[[], bool]) -> None:
    """Asks again and again, for as long as anyone may wait."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class TestServerAndModels:
    def test_the_server_is_live_and_ready(self, triton: Triton) -> None:
        assert triton.client.is_server_live() is True
        assert triton.client.is_server_ready() is True

    def test_a_model_that_is_loaded_is_ready_and_no_other(self, triton: Triton) -> None:
        assert triton.client.is_model_ready("pairs") is True
        assert triton.client.is_model_ready("pairs", "1") is True
        assert triton.client.is_model_ready("pairs", "2") is False
        assert triton.client.is_model_ready("nothing") is False

    def test_metadata_name_the_extensions_that_work(self, triton: Triton) -> None:
        said = triton.told(service_pb2.ServerMetadataResponse(), triton.client.get_server_metadata())
        assert said.name == "visionpool"
        assert {
            *("classification", "model_repository", "schedule_policy", "model_configuration", "statistics"),
            *("binary_tensor_data", "parameters", "trace", "logging", "system_shared_memory"),
        } <= set(said.extensions)
        assert "cuda_shared_memory" not in said.extensions

    def test_metadata_show_a_models_own_tensors(self, triton: Triton) -> None:
        said = triton.told(service_pb2.ModelMetadataResponse(), triton.client.get_model_metadata("pairs"))
        assert (said.name, list(said.versions)) == ("pairs", ["1"])
        tensors = [(one.name, one.datatype, list(one.shape)) for one in (*said.inputs, *said.outputs)]
        assert tensors == [(name, "FP32", [-1, 4]) for name in ("a", "b", "total", "difference")]
        said = triton.told(service_pb2.ModelMetadataResponse(), triton.client.get_model_metadata("unbatched", "1"))
        assert list(said.inputs[0].shape) == [5]

    def test_the_configuration_is_tritons(self, triton: Triton) -> None:
        answer = triton.client.get_model_config("fours")
        config = triton.told(model_config_pb2.ModelConfig(), answer) if triton.kind == "http" else answer.config
        assert (config.name, config.max_batch_size, config.backend) == ("fours", 4, "openvino")
        assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
            (name, model_config_pb2.TYPE_FP32, [4]) for name in ("a", "b")
        ]

    def test_both_transports_describe_alike(self, server: Server) -> None:
        with connected(server, "http") as one, connected(server, "grpc") as other:
            for name in ("pairs", "fours", "text", "unbatched", "named", "colours"):
                config = ParseDict(one.client.get_model_config(name), model_config_pb2.ModelConfig())
                assert config == other.client.get_model_config(name).config
                metadata = ParseDict(one.client.get_model_metadata(name), service_pb2.ModelMetadataResponse())
                assert metadata == other.client.get_model_metadata(name)

    @pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
    def test_what_is_not_there_is_not_found(self, triton: Triton, call: str) -> None:
        text = triton.refused("NOT_FOUND", lambda: getattr(triton.client, call)("nothing"))
        assert text.startswith("Request for unknown model: no model 'nothing'")
        text = triton.refused("NOT_FOUND", lambda: getattr(triton.client, call)("pairs", "2"))
        assert text.startswith("Request for unknown model: pairs has no version '2'")

    @pytest.mark.parametrize(
        ("model", "version", "words"),
        [
            ("nothing", "", "Request for unknown model"),
            ("pairs", "2", "Request for unknown model"),
            ("pairs", "newest", "failed to get model version from specified version string 'newest'"),
        ],
    )
    def test_programs_written_for_triton_find_the_words_that_they_look_for(
        self, triton: Triton, model: str, version: str, words: str
    ) -> None:
        inputs = triton.inputs(a=ROWS, b=ROWS)
        text = triton.refused("NOT_FOUND", lambda: triton.client.infer(model, inputs, version))
        assert text.startswith(words)

    def test_messages_can_be_had_as_json(self, over_grpc: Triton) -> None:
        client = over_grpc.client
        said = client.get_model_metadata("pairs", as_json=True)
        assert [(one["name"], one["shape"]) for one in said["inputs"]] == [("a", ["-1", "4"]), ("b", ["-1", "4"])]
        assert client.get_model_config("fours", as_json=True)["config"]["max_batch_size"] == 4
        assert "pairs" in [one["name"] for one in client.get_model_repository_index(as_json=True)["models"]]


class TestStatistics:
    @staticmethod
    def of(triton: Triton, model: str) -> Any:
        answer = triton.client.get_inference_statistics(model)
        (one,) = triton.told(service_pb2.ModelStatisticsResponse(), answer).model_stats
        assert (one.name, one.version) == (model, "1")
        return one

    @pytest.mark.parametrize(
        ("model", "rows", "batches"),
        [("pairs", 1, [1]), ("pairs", 7, [7]), ("fours", 3, [3]), ("fours", 10, [4, 4, 2]), ("twos", 5, [2, 2, 1])],
    )
    def test_requests_rows_and_executions_are_counted(
        self, triton: Triton, model: str, rows: int, batches: list[int]
    ) -> None:
        before, x = self.of(triton, model), np.ones((rows, 4), np.float32)
        for _ in range(3):
            triton.infer(model, a=x, b=x)
        after = self.of(triton, model)
        assert after.inference_count - before.inference_count == 3 * rows
        assert after.execution_count - before.execution_count == 3 * len(batches)
        assert after.inference_stats.success.count - before.inference_stats.success.count == 3
        assert after.inference_stats.fail.count == before.inference_stats.fail.count
        for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            assert getattr(after.inference_stats, stage).count == after.inference_stats.success.count
            assert getattr(after.inference_stats, stage).ns >= getattr(before.inference_stats, stage).ns
        counts = {one.batch_size: one.compute_infer.count for one in after.batch_stats}
        counts_before = {one.batch_size: one.compute_infer.count for one in before.batch_stats}
        assert sum(counts.values()) == after.execution_count
        for size in set(batches):
            assert counts[size] - counts_before.get(size, 0) == 3 * batches.count(size)
        assert after.last_inference >= before.last_inference > 0 or not before.inference_count

    def test_times_grow_by_what_the_work_took(self, triton: Triton) -> None:
        """`queue` takes 0.25 s for a picture."""
        before = self.of(triton, "queue").inference_stats
        triton.infer("queue", images=pictures((1, 2, 3)))
        after = self.of(triton, "queue").inference_stats
        took = after.compute_infer.ns - before.compute_infer.ns
        assert took >= 250_000_000
        assert after.success.ns - before.success.ns >= took

    def test_a_stream_is_counted_like_single_requests(self, over_grpc: Triton) -> None:
        before, stream = self.of(over_grpc, "pairs"), Stream(over_grpc)
        for number in range(5):
            stream.send(str(number), ROWS)
        assert [error for _, error in stream.wait(5)] == [None] * 5
        after = self.of(over_grpc, "pairs")
        assert after.inference_stats.success.count - before.inference_stats.success.count == 5
        assert after.inference_count - before.inference_count == 5 * len(ROWS)

    def test_failures_are_counted_as_failures(self, triton: Triton) -> None:
        before = self.of(triton, "failing")
        triton.infer("failing", images=pictures((1, 2, 3)))
        triton.refused("INTERNAL", lambda: triton.infer("failing", images=pictures((250, 0, 0))))
        after = self.of(triton, "failing").inference_stats
        assert after.fail.count - before.inference_stats.fail.count == 1
        assert after.success.count - before.inference_stats.success.count == 1

    def test_without_a_name_all_models_are_told(self, triton: Triton) -> None:
        answer = triton.client.get_inference_statistics()
        said = triton.told(service_pb2.ModelStatisticsResponse(), answer)
        assert {"pairs", "fours", "colours"} <= {one.name for one in said.model_stats}


class TestInference:
    def test_ids_come_back(self, triton: Triton) -> None:
        answer = triton.client.infer("pairs", triton.inputs(a=ROWS, b=ROWS), request_id="größe 17")
        response = answer.get_response()
        assert (response["id"] if triton.kind == "http" else response.id) == "größe 17"

    def test_outputs_are_chosen(self, triton: Triton) -> None:
        answer = triton.infer("pairs", outputs=[triton.output("difference")], a=ROWS, b=ROWS)
        assert answer.as_numpy("difference").tolist() == np.zeros((2, 4)).tolist()
        assert answer.as_numpy("total") is None

    @pytest.mark.parametrize("there", [False, True])
    @pytest.mark.parametrize("back", [False, True])
    def test_json_and_binary_mix(self, server: Server, there: bool, back: bool) -> None:
        with connected(server, "http") as triton:
            a, b = triton.inputs(a=ROWS, b=ROWS)
            a.set_data_from_numpy(ROWS, binary_data=there)
            outputs = [triton.output("total", binary_data=back), triton.output("difference", binary_data=not back)]
            answer = triton.client.infer("pairs", [a, b], outputs=outputs)
            assert answer.as_numpy("total").tolist() == (ROWS + ROWS).tolist()
            assert answer.as_numpy("difference").tolist() == np.zeros((2, 4)).tolist()

    @pytest.mark.parametrize("datatype", ["FP16", "BF16", "INT8"])
    def test_types_that_json_does_not_know(self, triton: Triton, datatype: str) -> None:
        x = array_of(datatype, [2, 3])
        answer = triton.infer(f"echo_{datatype}", x=x).as_numpy("y")
        assert (answer.dtype, answer.tolist()) == (x.dtype, x.tolist())
        assert datatype != "BF16" or answer.dtype == ml_dtypes.bfloat16

    @pytest.mark.parametrize("kind", [object, np.bytes_])
    def test_strings(self, triton: Triton, kind: Any) -> None:
        x = np.array([[b"one", "größe".encode(), b""]], kind)
        assert triton.infer("text", x=x).as_numpy("y").tolist() == [[b"one", "größe".encode(), b""]]

    def test_strings_in_json(self, server: Server) -> None:
        with connected(server, "http") as triton:
            (x,) = triton.inputs(x=np.array([[b"one", "größe".encode()]], object))
            x.set_data_from_numpy(np.array([["one", "größe"]], object), binary_data=False)
            answer = triton.client.infer("text", [x], outputs=[triton.output("y", binary_data=False)])
            assert answer.as_numpy("y").tolist() == [["one", "größe"]]

    @pytest.mark.parametrize("rows", [1, 6])
    def test_strings_that_a_model_computes_with(self, triton: Triton, rows: int) -> None:
        """Triton's `simple_string`: what the server tries a model out with has to be a number, too."""
        a, b = (np.array([[f"{10 * row + one}".encode() for one in (1, 2, 3)] for row in range(rows)], object),) * 2
        answer = triton.infer("text_sums", a=a, b=b)
        assert answer.as_numpy("total").astype(int).tolist() == (a.astype(int) * 2).tolist()
        assert answer.as_numpy("difference").tolist() == [[b"0"] * 3] * rows

    @pytest.mark.parametrize("classes", [1, 2, 3, 5])
    def test_classes_of_a_batch_have_labels(self, triton: Triton, classes: int) -> None:
        x = np.array([[0.25, 0.75, 0.5], [3, -1, 2]], np.float32)
        answer = triton.infer("named", outputs=[triton.output("y", class_count=classes)], x=x).as_numpy("y")
        wanted = [
            [b"0.750000:1:dog", b"0.500000:2:cow", b"0.250000:0:cat"],
            [b"3.000000:0:cat", b"2.000000:2:cow", b"-1.000000:1:dog"],
        ]
        assert answer.tolist() == [row[:classes] for row in wanted]

    def test_classes_without_a_batch_are_one_row(self, triton: Triton) -> None:
        x = np.array([5, -7, 3, 0, 1], np.int32)
        answer = triton.infer("unbatched", outputs=[triton.output("y", class_count=2)], x=x).as_numpy("y")
        assert answer.tolist() == [b"7:1", b"0:3"]

    @pytest.mark.parametrize("there", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("back", [None, "gzip", "deflate"])
    def test_bodies_may_be_compressed(
        self, server: Server, there: str | None, back: str | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        x = np.zeros((500, 4), np.float32)
        with connected(server, "http", verbose=True) as triton:
            coded = {"request_compression_algorithm": there, "response_compression_algorithm": back}
            answer = triton.client.infer("pairs", triton.inputs(a=x, b=x + 1), **coded)
            assert answer.as_numpy("total").tolist() == (x + 1).tolist()
        printed = capsys.readouterr().out  # the headers of both, as the client has them
        assert f"'Content-Encoding': '{there}'" in printed or there is None
        assert f"'content-encoding': '{back}'" in printed or (back is None and "'content-encoding'" not in printed)

    @pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
    def test_messages_may_be_compressed(self, over_grpc: Triton, algorithm: str) -> None:
        x = np.zeros((500, 4), np.float32)
        inputs = over_grpc.inputs(a=x, b=x + 1)
        answer = over_grpc.client.infer("pairs", inputs, compression_algorithm=algorithm)
        assert answer.as_numpy("total").tolist() == (x + 1).tolist()

    def test_parameters_of_the_callers_own_are_let_through(self, triton: Triton) -> None:
        said = {"note": "hello", "count": 3, "flag": True, "share": 0.5}
        answer = triton.client.infer("pairs", triton.inputs(a=ROWS, b=ROWS), parameters=said)
        assert answer.as_numpy("total").tolist() == (ROWS + ROWS).tolist()

    def test_headers_of_the_callers_own_are_let_through(self, triton: Triton) -> None:
        said: dict[str, Any] = {"headers": {"x-mine": "7", "traceparent": "none"}}
        if triton.kind == "http":
            said["query_params"] = {"test_1": 1, "test_2": 2}
        answer = triton.client.infer("pairs", triton.inputs(a=ROWS, b=ROWS), **said)
        assert answer.as_numpy("total").tolist() == (ROWS + ROWS).tolist()
        assert triton.client.is_server_live(**said) is True

    def test_a_plugin_of_the_client_may_add_its_header(self, server: Server) -> None:
        for kind in ("http", "grpc"):
            with connected(server, kind) as triton:
                triton.client.register_plugin(BasicAuth("someone", "secret"))
                answer = triton.infer("pairs", a=ROWS, b=ROWS)
                assert answer.as_numpy("total").tolist() == (ROWS + ROWS).tolist()

    def test_a_body_that_the_client_made_may_be_sent_by_another(self, server: Server) -> None:
        with connected(server, "http") as triton:
            body, length = triton.client.generate_request_body(triton.inputs(a=ROWS, b=ROWS), request_id="17")
            answer = httpx.post(
                f"{server.url}/v2/models/pairs/infer",
                content=body,
                headers={"Inference-Header-Content-Length": str(length)},
                timeout=PATIENCE,
            )
            header = int(answer.headers["Inference-Header-Content-Length"])
            said = triton.client.parse_response_body(answer.content, header_length=header)
        assert said.get_response()["id"] == "17"
        assert said.as_numpy("total").tolist() == (ROWS + ROWS).tolist()

    @pytest.mark.parametrize("kind", ["http", "grpc"])
    def test_one_client_may_ask_for_much_at_once(self, server: Server, kind: str) -> None:
        """Each answer is its own request's, whichever comes first."""
        found: dict[int, Any] = {}
        with connected(server, kind, **({"concurrency": 8} if kind == "http" else {})) as triton:
            if kind == "http":
                waiting = [triton.client.async_infer("fours", triton.inputs(a=ROWS * n, b=ROWS)) for n in range(40)]
                found = {n: one.get_result(timeout=PATIENCE) for n, one in enumerate(waiting)}
            else:

                def take(number: int, result: Any, error: Any) -> None:
                    found[number] = error or result

                for n in range(40):
                    triton.client.async_infer("fours", triton.inputs(a=ROWS * n, b=ROWS), partial(take, n))
                until(lambda: len(found) == 40)
        for n, answer in found.items():
            assert answer.as_numpy("difference").tolist() == (ROWS * n - ROWS).tolist()

    def test_a_body_that_is_too_large_is_refused_as_such(self, server: Server) -> None:
        x = np.zeros((6 * MEGABYTE // 16, 4), np.float32)
        with connected(server, "http") as triton:
            assert "4 MiB" in triton.refused("INVALID_ARGUMENT", lambda: triton.infer("pairs", a=x, b=x))
            assert triton.infer("pairs", a=ROWS, b=ROWS).as_numpy("total").tolist() == (ROWS + ROWS).tolist()
        with connected(server, "grpc") as triton:
            triton.refused("RESOURCE_EXHAUSTED", lambda: triton.infer("pairs", a=x, b=x))  # gRPC's own
            assert triton.infer("pairs", a=ROWS, b=ROWS).as_numpy("total").tolist() == (ROWS + ROWS).tolist()

    def test_many_threads_get_their_own_answers(self, server: Server) -> None:
        def work(seed: int) -> None:
            with connected(server, "grpc" if seed % 2 else "http") as triton:
                for step in range(20):
                    a, b = np.random.default_rng(100 * seed + step).normal(size=(2, 5, 4)).astype(np.float32)
                    answer = triton.infer("fours", a=a, b=b)
                    assert answer.as_numpy("difference").tolist() == (a - b).tolist()

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(8)))


@contextmanager
def segment(name: str, size: int) -> Iterator[Any]:
    handle = shm.create_shared_memory_region(name, f"/{name}", size)
    try:
        yield handle
    finally:
        shm.destroy_shared_memory_region(handle)


class TestSharedMemory:
    def test_tensors_come_from_and_go_to_shared_memory(self, triton: Triton) -> None:
        name, client = f"visionpool-{triton.kind}", triton.client
        with segment(name, 4 * 32) as handle:
            client.register_system_shared_memory("region", f"/{name}", 4 * 32)
            try:
                shm.set_shared_memory_region(handle, [ROWS, ROWS + 1])
                a, b = triton.inputs(a=ROWS, b=ROWS)
                a.set_shared_memory("region", 32)
                b.set_shared_memory("region", 32, offset=32)
                outputs = [triton.output("total"), triton.output("difference")]
                outputs[0].set_shared_memory("region", 32, offset=64)
                outputs[1].set_shared_memory("region", 32, offset=96)
                answer = client.infer("pairs", [a, b], outputs=outputs)
                told = answer.get_output("total")
                assert list(told["shape"] if triton.kind == "http" else told.shape) == [2, 4]
                total = shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=64)
                difference = shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=96)
                assert total.tolist() == (ROWS + ROWS + 1).tolist()
                assert difference.tolist() == np.full((2, 4), -1.0).tolist()
                del total, difference
            finally:
                client.unregister_system_shared_memory("region")

    def test_strings_come_from_and_go_to_shared_memory(self, triton: Triton) -> None:
        name, x = f"visionpool-text-{triton.kind}", np.array([[b"one", b"", "größe".encode()]], object)
        packed = serialize_byte_tensor(x)
        size = len(packed.item())
        with segment(name, 2 * size) as handle:
            triton.client.register_system_shared_memory("text", f"/{name}", 2 * size)
            try:
                shm.set_shared_memory_region(handle, [packed])
                (tensor,) = triton.inputs(x=x)
                tensor.set_shared_memory("text", size)
                output = triton.output("y")
                output.set_shared_memory("text", size, offset=size)
                triton.client.infer("text", [tensor], outputs=[output])
                found = shm.get_contents_as_numpy(handle, np.object_, [1, 3], offset=size)
                assert found.tolist() == x.tolist()
            finally:
                triton.client.unregister_system_shared_memory("text")

    @pytest.mark.parametrize("there", ["total", "difference"])
    def test_one_output_may_go_there_and_another_travel(self, triton: Triton, there: str) -> None:
        name = f"visionpool-other-{triton.kind}"
        outputs = {name: triton.output(name) for name in ("total", "difference")}
        outputs[there].set_shared_memory("other", 32)
        wanted = {"total": ROWS + ROWS, "difference": ROWS - ROWS}
        with segment(name, 32) as handle:
            triton.client.register_system_shared_memory("other", f"/{name}", 32)
            try:
                answer = triton.infer("pairs", outputs=list(outputs.values()), a=ROWS, b=ROWS)
                for output, array in wanted.items():
                    if output == there:
                        found = shm.get_contents_as_numpy(handle, np.float32, [2, 4]).copy()
                    else:
                        found = answer.as_numpy(output)
                    assert found.tolist() == array.tolist()
            finally:
                triton.client.unregister_system_shared_memory("other")

    def test_one_input_may_lie_there_and_another_travel(self, triton: Triton) -> None:
        name = f"visionpool-half-{triton.kind}"
        with segment(name, 32) as handle:
            triton.client.register_system_shared_memory("half", f"/{name}", 32)
            try:
                shm.set_shared_memory_region(handle, [ROWS])
                a, b = triton.inputs(a=ROWS, b=ROWS + 5)
                a.set_shared_memory("half", 32)
                for inputs in ([a, b], [b, a]):
                    answer = triton.client.infer("pairs", inputs)
                    assert answer.as_numpy("difference").tolist() == np.full((2, 4), -5.0).tolist()
            finally:
                triton.client.unregister_system_shared_memory("half")

    def test_what_is_registered_is_shown_until_it_is_not(self, triton: Triton) -> None:
        def regions() -> dict[str, tuple[str, int, int]]:
            said = triton.client.get_system_shared_memory_status()
            if triton.kind == "http":
                return {one["name"]: (one["key"], one["offset"], one["byte_size"]) for one in said}
            return {one.name: (one.key, one.offset, one.byte_size) for one in said.regions.values()}

        name = f"visionpool-shown-{triton.kind}"
        with segment(name, 100):
            triton.client.register_system_shared_memory("shown", f"/{name}", 60, offset=40)
            assert regions()["shown"] == (f"/{name}", 40, 60)
            text = triton.refused(
                "INVALID_ARGUMENT", lambda: triton.client.register_system_shared_memory("shown", f"/{name}", 10)
            )
            assert "registered already" in text
            triton.client.unregister_system_shared_memory()
            assert regions() == {}

    def test_a_place_that_is_too_small_and_a_region_that_is_not_there_are_refused(self, triton: Triton) -> None:
        name = f"visionpool-small-{triton.kind}"
        output = triton.output("total")
        output.set_shared_memory("small", 32)
        with segment(name, 31):
            text = triton.refused("NOT_FOUND", lambda: triton.infer("pairs", outputs=[output], a=ROWS, b=ROWS))
            assert "'small'" in text
            triton.client.register_system_shared_memory("small", f"/{name}", 31)
            text = triton.refused("INVALID_ARGUMENT", lambda: triton.infer("pairs", outputs=[output], a=ROWS, b=ROWS))
            assert "lie outside" in text
            output.set_shared_memory("small", 31)
            text = triton.refused("INVALID_ARGUMENT", lambda: triton.infer("pairs", outputs=[output], a=ROWS, b=ROWS))
            assert "takes 32 bytes" in text
            triton.client.unregister_system_shared_memory("small")

    def test_memory_of_a_gpu_is_not_served_and_says_so(self, triton: Triton) -> None:
        handle = base64.b64encode(bytes(64))
        text = triton.refused(
            "UNIMPLEMENTED", lambda: triton.client.register_cuda_shared_memory("gpu", handle, 0, 1024)
        )
        assert "CUDA shared memory" in text
        triton.client.unregister_cuda_shared_memory()
        status = triton.client.get_cuda_shared_memory_status()
        assert (status if triton.kind == "http" else list(status.regions)) == []


class Stream:
    """A stream of tritonclient, and what came back on it, in order."""

    def __init__(self, triton: Triton, **said: Any) -> None:
        self._triton = triton
        self._came = threading.Condition()
        self.answers: list[tuple[Any, Any]] = []
        triton.client.start_stream(callback=self._receive, **said)

    def _receive(self, result: Any, error: Any) -> None:
        with self._came:
            self.answers.append((result, error))
            self._came.notify_all()

    def send(self, name: str, a: Array, b: Array = ROWS, model: str = "pairs", **said: Any) -> None:
        self._triton.client.async_stream_infer(model, self._triton.inputs(a=a, b=b), request_id=name, **said)

    def wait(self, count: int) -> list[tuple[Any, Any]]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.answers) >= count, PATIENCE)
        self._triton.client.stop_stream()
        assert len(self.answers) == count
        return self.answers


class TestStreams:
    def test_answers_come_in_the_order_of_the_requests(self, over_grpc: Triton) -> None:
        stream = Stream(over_grpc)
        for number in range(200):
            stream.send(str(number), ROWS * number)
        for number, (result, error) in enumerate(stream.wait(200)):
            assert error is None
            assert result.get_response().id == str(number)
            assert result.as_numpy("total").tolist() == (ROWS * number + ROWS).tolist()

    def test_a_bad_request_does_not_end_the_stream(self, over_grpc: Triton) -> None:
        stream = Stream(over_grpc)
        stream.send("good", ROWS)
        stream.send("bad", np.ones((2, 5), np.float32))
        stream.send("unknown", ROWS, model="nothing")
        stream.send("good again", ROWS)
        good, bad, unknown, again = stream.wait(4)
        assert "[2, 5]" in str(bad[1]) and "nothing" in str(unknown[1])
        assert (bad[0], unknown[0]) == (None, None)
        assert [one[0].get_response().id for one in (good, again)] == ["good", "good again"]

    @pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
    def test_a_stream_may_be_compressed(self, over_grpc: Triton, algorithm: str) -> None:
        x = np.zeros((500, 4), np.float32)
        stream = Stream(over_grpc, compression_algorithm=algorithm, headers={"x-mine": "7"})
        for number in range(3):
            stream.send(str(number), x + number, x)
        for number, (result, error) in enumerate(stream.wait(3)):
            assert error is None
            assert result.as_numpy("total").tolist() == (x + number).tolist()

    def test_a_timeout_in_a_stream_is_that_requests_alone(self, over_grpc: Triton) -> None:
        stream = Stream(over_grpc)
        stream.send("before", ROWS)
        over_grpc.client.async_stream_infer("queue", over_grpc.inputs(images=pictures((1, 2, 3))), timeout=20_000)
        stream.send("after", ROWS)
        before, late, after = stream.wait(3)
        assert late[0] is None and "no answer within 0.02 s" in str(late[1])
        assert [one[0].get_response().id for one in (before, after)] == ["before", "after"]

    def test_a_deadline_of_the_client_is_that_of_the_whole_stream(self, over_grpc: Triton) -> None:
        stream = Stream(over_grpc, stream_timeout=0.2)
        over_grpc.client.async_stream_infer("slow", over_grpc.inputs(images=pictures((1, 2, 3))))
        until(lambda: "StatusCode.DEADLINE_EXCEEDED" in [error.status() for _, error in list(stream.answers)])
        over_grpc.client.stop_stream()
        assert [result for result, _ in stream.answers if result] == []

    @pytest.mark.parametrize("asked", [False, True])
    def test_the_last_answer_says_so_where_that_is_asked_for(self, over_grpc: Triton, asked: bool) -> None:
        stream = Stream(over_grpc)
        stream.send("one", ROWS, enable_empty_final_response=asked)
        ((result, error),) = stream.wait(1)
        assert error is None
        said = result.get_response().parameters
        assert said["triton_final_response"].bool_param if asked else "triton_final_response" not in said

    def test_a_stream_may_be_stopped_in_the_middle_of_its_work(self, over_grpc: Triton) -> None:
        stream = Stream(over_grpc)
        for number in range(20):
            over_grpc.client.async_stream_infer(
                "line", over_grpc.inputs(images=pictures((1, 2, number))), request_id=str(number)
            )
        over_grpc.client.stop_stream(cancel_requests=True)
        assert len(stream.answers) < 20
        assert over_grpc.infer("line", images=pictures((1, 2, 3))).as_numpy("result").shape == (1,)


class TestRepository:
    @staticmethod
    def states(triton: Triton) -> dict[str, tuple[str, str]]:
        said = triton.client.get_model_repository_index()
        if triton.kind == "http":
            return {one["name"]: (one.get("state", ""), one.get("reason", "")) for one in said}
        return {one.name: (one.state, one.reason) for one in said.models}

    def test_the_index_shows_what_is_loaded_and_what_could_be(self, triton: Triton) -> None:
        states = self.states(triton)
        assert states["pairs"] == ("READY", "")
        assert states["broken"][0] == "UNAVAILABLE"

    def test_a_model_goes_and_comes_back(self, triton: Triton) -> None:
        triton.client.unload_model("reloaded")
        assert triton.client.is_model_ready("reloaded") is False
        assert self.states(triton)["reloaded"] == ("UNAVAILABLE", "unloaded")
        triton.refused("NOT_FOUND", lambda: triton.infer("reloaded", a=ROWS, b=ROWS))
        triton.client.load_model("reloaded")
        assert triton.client.is_model_ready("reloaded") is True
        assert triton.infer("reloaded", a=ROWS, b=ROWS).as_numpy("total").tolist() == (ROWS + ROWS).tolist()

    def test_what_cannot_be_loaded_says_why(self, triton: Triton) -> None:
        with pytest.raises(InferenceServerException, match="failed to load 'broken'"):
            triton.client.load_model("broken")
        assert "broken" in self.states(triton)
        assert "failed to load" in triton.refused("NOT_FOUND", lambda: triton.client.load_model("nothing"))
        triton.refused("NOT_FOUND", lambda: triton.client.unload_model("nothing"))

    def test_a_configuration_from_the_client_is_not_taken(self, triton: Triton) -> None:
        text = triton.refused("UNIMPLEMENTED", lambda: triton.client.load_model("pairs", config="{}"))
        assert "failed to load" in text

    def test_reloading_while_requests_are_in_flight_loses_none(self, server: Server) -> None:
        stop = threading.Event()

        def ask(kind: str) -> int:
            count = 0
            with connected(server, kind) as triton:
                while not stop.is_set():
                    answer = triton.infer("reloaded", a=ROWS + count, b=ROWS)
                    assert answer.as_numpy("difference").tolist() == np.full((2, 4), count).tolist()
                    count += 1
            return count

        with ThreadPoolExecutor(4) as threads, connected(server, "grpc") as triton:
            asked = [threads.submit(ask, kind) for kind in ("http", "grpc", "http", "grpc")]
            try:
                for _ in range(5):
                    triton.client.load_model("reloaded")
            finally:
                stop.set()
            assert all(one.result(PATIENCE) > 0 for one in asked)


class TestSwitches:
    def test_traces_are_switched_on_for_one_model_and_off_again(self, triton: Triton, traces: Path) -> None:
        client, file = triton.client, traces / f"{triton.kind}.json"
        said = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "2", "trace_file": file.name}
        as_json = {"as_json": True} if triton.kind == "grpc" else {}

        def level() -> str:
            shown = client.get_trace_settings(model_name="pairs", **as_json)
            return json.dumps((shown["settings"] if as_json else shown)["trace_level"])

        client.update_trace_settings(model_name="pairs", settings=said)
        try:
            assert "TIMESTAMPS" in level()
            for number in range(3):
                client.infer("pairs", triton.inputs(a=ROWS, b=ROWS), request_id=f"traced {number}")
            until(lambda: file.exists() and b"traced 1" in file.read_bytes())
        finally:
            client.update_trace_settings(model_name="pairs", settings=dict.fromkeys(said))
        assert "OFF" in level()
        names = [name for name in ("traced 0", "traced 1", "traced 2") if name.encode() in file.read_bytes()]
        assert names == ["traced 0", "traced 1"]

    def test_log_settings_are_shown_and_changed(self, triton: Triton) -> None:
        as_json = {"as_json": True} if triton.kind == "grpc" else {}

        def shown() -> Any:
            said = triton.client.get_log_settings(**as_json)
            return said if triton.kind == "http" else said["settings"]["log_verbose_level"]

        before = shown()
        triton.client.update_log_settings(settings={"log_verbose_level": 1, "log_info": True})
        assert shown() != before
        triton.client.update_log_settings(settings={"log_verbose_level": 0})
        assert shown() == before
        with pytest.raises(InferenceServerException, match="log_nonsense"):
            triton.client.update_log_settings(settings={"log_nonsense": True})


class TestTimeAndPlaces:
    """`narrow` has one worker, which takes 0.3 s, and room for two requests."""

    def test_a_timeout_of_the_request_ends_it(self, triton: Triton) -> None:
        text = triton.refused(
            "DEADLINE_EXCEEDED",
            lambda: triton.client.infer("narrow", triton.inputs(images=pictures((1, 2, 3))), timeout=20_000),
        )
        assert "0.02 s" in text
        self._has_room(triton)

    def test_a_client_that_hangs_up_gives_its_place_back(self, server: Server) -> None:
        with connected(server, "http", network_timeout=0.05) as hasty, pytest.raises(TimeoutError):
            hasty.infer("narrow", images=pictures((1, 2, 3)))
        with connected(server, "http") as triton:
            self._has_room(triton)

    def test_a_deadline_of_the_client_is_passed_down(self, over_grpc: Triton) -> None:
        inputs = over_grpc.inputs(images=pictures((1, 2, 3)))
        for _ in range(4):
            over_grpc.refused(
                "DEADLINE_EXCEEDED", lambda: over_grpc.client.infer("narrow", inputs, client_timeout=0.05)
            )
            self._has_room(over_grpc)

    def test_a_cancelled_request_gives_its_place_back(self, over_grpc: Triton) -> None:
        """`slow` takes two seconds, and has room for two: while the first runs, the second's place is the only other one."""
        ended: list[str] = []

        def ask(name: str) -> Any:
            def end(result: Any, error: Any) -> None:
                ended.append(f"{name} {refused(error).kind if error else 'OK'}")

            call = over_grpc.client.async_infer("slow", over_grpc.inputs(images=pictures((1, 2, 3))), end)
            assert over_grpc.client.is_server_live()  # by then the server has seen the call too
            return call

        ask("first")
        second = ask("second")
        ask("too many")
        until(lambda: bool(ended))
        assert ended == ["too many RESOURCE_EXHAUSTED"]
        second.cancel()
        until(lambda: "second CANCELLED" in ended)

        def let_in() -> bool:
            """Who is refused is told so before anyone else gets an answer."""
            refusals = ended.count("third RESOURCE_EXHAUSTED")
            ask("third")
            until(lambda: ended.count("third RESOURCE_EXHAUSTED") > refusals or "first OK" in ended)
            return ended.count("third RESOURCE_EXHAUSTED") == refusals

        until(let_in)
        assert ended.count("third RESOURCE_EXHAUSTED") < 20
        until(lambda: "third OK" in ended)
        assert ended.index("first OK") < ended.index("third OK")

    def test_a_full_queue_refuses(self, server: Server) -> None:
        """Ten at once, and there is room for two."""

        def ask(number: int) -> str:
            with connected(server, "grpc" if number % 2 else "http") as triton:
                try:
                    triton.infer("narrow", images=pictures((1, 2, number)))
                except InferenceServerException as error:
                    assert "waiting already" in str(error.message())
                    return refused(error).kind
            return "OK"

        with ThreadPoolExecutor(10) as threads:
            answers = list(threads.map(ask, range(10)))
        assert set(answers) == {"OK", "RESOURCE_EXHAUSTED"}
        assert answers.count("OK") >= 2

    def test_who_is_first_in_priority_is_served_first(self, over_grpc: Triton) -> None:
        """`line` takes one after another; the last of eight is the most urgent."""
        done: list[str] = []
        for number, priority in enumerate([0, 9, 9, 9, 5, 9, 9, 1]):
            over_grpc.client.async_infer(
                "line",
                over_grpc.inputs(images=pictures((1, 2, number))),
                lambda result, error: done.append(str(error) if error else result.get_response().id),
                priority=priority,
                request_id=str(number),
            )
        until(lambda: len(done) == 8)
        assert sorted(done) == [str(number) for number in range(8)]
        assert done.index("7") < done.index("4") < done.index("6")

    def test_priority_counts_over_http_as_well(self, server: Server) -> None:
        """`queue` takes one after another, 0.25 s each; the last of eight is the most urgent."""
        done: list[int] = []

        def ask(number: int) -> None:
            with connected(server, "http") as triton:
                inputs = triton.inputs(images=pictures((1, 2, number)))
                triton.client.infer("queue", inputs, priority=1 if number == 7 else 9)
                done.append(number)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
        assert sorted(done) == list(range(8))
        assert done.index(7) < 6

    @staticmethod
    def _has_room(triton: Triton) -> None:
        """Both places can be had, at once, by and by: the worker may still be busy with what nobody waits for."""

        def both() -> bool:
            def ask(_: int) -> bool:
                with connected(triton.server, triton.kind) as own:
                    try:
                        own.infer("narrow", images=pictures((4, 5, 6)))
                    except InferenceServerException as error:
                        assert refused(error).kind == "RESOURCE_EXHAUSTED"
                        return False
                return True

            with ThreadPoolExecutor(2) as threads:
                return all(threads.map(ask, range(2)))

        until(both)


class TestGrpcItself:
    def test_health_is_told_in_grpcs_own_protocol(self, server: Server) -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", "inference.GRPCInferenceService"):
                answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def test_the_services_are_listed_with_what_they_take(self, server: Server) -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
            file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
            (service,) = (one for one in file.service if one.name == "GRPCInferenceService")
            assert "ModelStreamInfer" in [method.name for method in service.method]

    def test_an_error_in_a_stream_carries_the_id_of_its_request(self, server: Server) -> None:
        requests = [service_pb2.ModelInferRequest(model_name="nothing", id=name) for name in ("one", "two")]
        with grpc.insecure_channel(server.grpc) as channel:
            answers = list(GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests), timeout=PATIENCE))
        assert [one.infer_response.id for one in answers] == ["one", "two"]
        assert all(one.error_message.startswith("Request for unknown model") for one in answers)

    def test_values_there_and_in_raw_form_are_refused_in_tritons_words(self, server: Server) -> None:
        request = service_pb2.ModelInferRequest(model_name="pairs", raw_input_contents=[bytes(16)])
        tensor = request.inputs.add(name="a", datatype="FP32", shape=[1, 4])
        tensor.contents.fp32_contents.extend([1, 2, 3, 4])
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
            GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        said = "contents field must not be specified when using raw_input_contents for 'a' for model 'pairs'"
        assert said in str(caught.value.details())

    def test_bytes_that_are_no_message_are_the_callers_fault(self, server: Server) -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer"
            )
            with pytest.raises(grpc.RpcError) as caught:
                call(b"\xff\xff\xff", timeout=PATIENCE)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


class TestStopping:
    @pytest.mark.parametrize("stream", [False, True])
    def test_sigterm_loses_no_request_that_is_in_flight(self, stream: bool, serve: Serve, tmp_path: Path) -> None:
        server = serve(write_model(tmp_path / "slow", {"latency_ms": 150}, workers=2))
        answers: list[tuple[Any, Any]] = []
        came = threading.Condition()

        def callback(result: Any, error: Any) -> None:
            with came:
                answers.append((result, error))
                came.notify_all()

        with connected(server, "grpc") as triton:
            if stream:
                triton.client.start_stream(callback)
            for number in range(12):
                inputs = triton.inputs(images=pictures((200, number, 10)))
                if stream:
                    triton.client.async_stream_infer("slow", inputs)
                else:
                    triton.client.async_infer("slow", inputs, callback)
            with came:
                assert came.wait_for(lambda: answers, PATIENCE)
                server.process.send_signal(signal.SIGTERM)
                assert came.wait_for(lambda: len(answers) == 12, PATIENCE)
            if stream:
                triton.client.stop_stream()
            assert [error for _, error in answers if error] == []
        found = set()
        for result, _ in answers:
            said = json.loads(result.as_numpy("result")[0])
            found.add(round(dict(zip(said["labels"], said["scores"], strict=True))["green"], 3))
        assert found == {round(shares((200, number, 10))["green"], 3) for number in range(12)}
        assert server.process.wait(PATIENCE) == 0

    def test_colours_are_what_the_fake_says(self, triton: Triton) -> None:
        (result,) = triton.infer("colours", images=pictures((200, 20, 30))).as_numpy("result")
        assert set(json.loads(result)["labels"]) == set(COLOURS)
