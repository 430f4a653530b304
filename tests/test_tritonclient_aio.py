"""tritonclient's asyncio clients, unchanged, against a real server, over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http.aio as http_aio
import tritonclient.utils.shared_memory as shm
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, serialize_byte_tensor

from tests import tiny_models
from tests.kserve_models import PATIENCE, Array, array_of, operator, refused, weights, write_yaml
from tests.real_server import Server, picture, serving, write_model

# tritonclient drops answers that it does not read to their end, and aiohttp complains whenever they are collected.
pytestmark = pytest.mark.filterwarnings("ignore:.*Connection.__del__:pytest.PytestUnraisableExceptionWarning")

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
LIBRARIES: dict[str, Any] = {"http": http_aio, "grpc": grpc_aio}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("aio")
    for name in ("pairs", "reloaded"):
        tiny_models.two_by_two(weights(folder / name))
    write_yaml(operator(folder / "text", "Identity", "BYTES", ["n", "m"]), runtime={"backend": "onnxruntime"})
    write_yaml(operator(folder / "named", "Identity", "FP32", ["n", 3]), labels=["cat", "dog", "cow"])
    operator(folder / "half", "Identity", "FP16", ["n", "m"])
    operator(folder / "brain", "Identity", "BF16", ["n", "m"])
    one = {"workers": 1, "batching": {"max_batch_size": 1, "max_queue_size": 1}}
    write_model(folder / "narrow", {"latency_ms": 200}, **one)
    with serving(folder, "--model-control-mode", "explicit", "--load-model", "*") as running:
        (folder / "broken").mkdir()
        (folder / "broken" / "model.onnx").write_bytes(b"no model at all")
        yield running


class Client:
    """One of the two libraries, connected."""

    def __init__(self, kind: str, server: Server) -> None:
        self.kind = kind
        self.library = LIBRARIES[kind]
        address = server.url.removeprefix("http://") if kind == "http" else server.grpc
        self.triton = self.library.InferenceServerClient(address)

    def inputs(self, **arrays: Array) -> list[Any]:
        made = []
        for name, array in arrays.items():
            tensor = self.library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            made.append(tensor)
        return made

    def output(self, name: str, **said: Any) -> Any:
        return self.library.InferRequestedOutput(name, **said)

    async def statistics(self, model: str) -> Any:
        """Of one model, as the protocol's message."""
        answer = await self.triton.get_inference_statistics(model)
        said = ParseDict(answer, pb.ModelStatisticsResponse()) if self.kind == "http" else answer
        (one,) = said.model_stats
        return one

    async def infer(self, model: str, /, **arrays: Array) -> Any:
        return await self.triton.infer(model, self.inputs(**arrays))

    async def refused(self, kind: str, call: Awaitable[Any]) -> str:
        """The text of the error that a call must raise."""
        with pytest.raises(InferenceServerException) as caught:
            await call
        error = refused(caught.value)
        assert error.kind == kind, error
        return error.message


@pytest.fixture(params=["http", "grpc"])
def run(
    request: pytest.FixtureRequest, server: Server
) -> Callable[[Callable[[Client], Coroutine[Any, Any, None]]], None]:
    """Runs a coroutine with a client on a loop of its own, for as long as anyone may wait."""

    def run_it(work: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(PATIENCE), connected(request.param, server) as client:
                await work(client)

        asyncio.run(main())
        gc.collect()  # here, where it is expected: see `pytestmark`

    return run_it


@asynccontextmanager
async def connected(kind: str, server: Server) -> AsyncIterator[Client]:
    client = Client(kind, server)
    try:
        yield client
    finally:
        await client.triton.close()


Run = Callable[[Callable[[Client], Coroutine[Any, Any, None]]], None]


def pictures(*colours: tuple[int, int, int]) -> Array:
    made = np.empty(len(colours), object)
    made[:] = [picture(colour) for colour in colours]
    return made


def test_health_and_descriptions(run: Run) -> None:
    async def work(client: Client) -> None:
        triton = client.triton
        assert await triton.is_server_live() and await triton.is_server_ready() and await triton.is_model_ready("pairs")
        assert not await triton.is_model_ready("nothing")
        said = await triton.get_server_metadata()
        assert (said["name"] if client.kind == "http" else said.name) == "visionpool"
        said = await triton.get_model_metadata("pairs")
        inputs = [one["name"] for one in said["inputs"]] if client.kind == "http" else [one.name for one in said.inputs]
        assert inputs == ["a", "b"]
        said = await triton.get_model_config("pairs")
        assert (said["name"] if client.kind == "http" else said.config.name) == "pairs"
        assert "nothing" in await client.refused("NOT_FOUND", triton.get_model_metadata("nothing"))

    run(work)


def test_tensors_of_every_kind_come_back(run: Run) -> None:
    async def work(client: Client) -> None:
        answer = await client.infer("pairs", a=ROWS, b=ROWS)
        assert answer.as_numpy("total").tolist() == (ROWS + ROWS).tolist()
        text = array_of("BYTES", [2, 2])
        assert (await client.infer("text", x=text)).as_numpy("y").tolist() == text.tolist()
        for model, datatype in (("half", "FP16"), ("brain", "BF16")):
            x = array_of(datatype, [2, 2])
            found = (await client.infer(model, x=x)).as_numpy("y")
            assert (found.dtype, found.tolist()) == (x.dtype, x.tolist())
        x = np.array([[0.25, 0.75, 0.5]], np.float32)
        answer = await client.triton.infer(
            "named", client.inputs(x=x), outputs=[client.output("y", class_count=1)], request_id="7"
        )
        assert answer.as_numpy("y").tolist() == [[b"0.750000:1:dog"]]
        response = answer.get_response()
        assert (response["id"] if client.kind == "http" else response.id) == "7"

    run(work)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_json_and_binary_mix(server: Server, there: bool, back: bool) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected("http", server) as client:
            a, b = client.inputs(a=ROWS, b=ROWS)
            a.set_data_from_numpy(ROWS, binary_data=there)
            outputs = [client.output("total", binary_data=back), client.output("difference", binary_data=not back)]
            answer = await client.triton.infer("pairs", [a, b], outputs=outputs)
            assert answer.as_numpy("total").tolist() == (ROWS + ROWS).tolist()
            assert answer.as_numpy("difference").tolist() == np.zeros((2, 4)).tolist()
            (x,) = client.inputs(x=np.array([["one", "größe"]], object))
            x.set_data_from_numpy(np.array([["one", "größe"]], object), binary_data=there)
            answer = await client.triton.infer("text", [x], outputs=[client.output("y", binary_data=back)])
            found = [one.decode() if isinstance(one, bytes) else one for one in answer.as_numpy("y")[0].tolist()]
            assert found == ["one", "größe"]

    asyncio.run(main())


def test_statistics_count_what_was_asked(run: Run) -> None:
    async def work(client: Client) -> None:
        before = await client.statistics("pairs")
        await asyncio.gather(*(client.infer("pairs", a=ROWS, b=ROWS) for _ in range(6)))
        await client.refused("INVALID_ARGUMENT", client.infer("pairs", a=ROWS))
        after = await client.statistics("pairs")
        assert after.inference_stats.success.count - before.inference_stats.success.count == 6
        assert after.inference_count - before.inference_count == 6 * len(ROWS)
        assert after.inference_stats.success.ns > before.inference_stats.success.ns

    run(work)


def test_headers_and_priority_of_the_callers_own_are_let_through(run: Run) -> None:
    async def work(client: Client) -> None:
        said: dict[str, Any] = {"headers": {"x-mine": "7"}}
        if client.kind == "http":
            said["query_params"] = {"test_1": 1}
        assert await client.triton.is_server_live(**said)
        answer = await client.triton.infer("pairs", client.inputs(a=ROWS, b=ROWS), priority=1, **said)
        assert answer.as_numpy("total").tolist() == (ROWS + ROWS).tolist()

    run(work)


def test_errors_are_the_callers_own(run: Run) -> None:
    async def work(client: Client) -> None:
        text = await client.refused("INVALID_ARGUMENT", client.infer("pairs", a=ROWS, b=np.ones((2, 5), np.float32)))
        assert "[2, 5]" in text
        text = await client.refused("NOT_FOUND", client.infer("nothing", a=ROWS))
        assert text.startswith("Request for unknown model")

    run(work)


def test_a_hundred_at_once_get_their_own_answers(run: Run) -> None:
    async def work(client: Client) -> None:
        async def ask(number: int) -> None:
            answer = await client.infer("pairs", a=ROWS * number, b=ROWS)
            assert answer.as_numpy("difference").tolist() == (ROWS * number - ROWS).tolist()

        await asyncio.gather(*(ask(number) for number in range(100)))

    run(work)


def test_more_than_there_is_room_for_are_refused_and_the_others_answered(run: Run) -> None:
    async def work(client: Client) -> None:
        calls = [client.infer("narrow", images=pictures((1, 2, number))) for number in range(8)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        kinds = [refused(one).kind for one in answers if isinstance(one, InferenceServerException)]
        assert set(kinds) == {"RESOURCE_EXHAUSTED"}
        assert 1 <= len(answers) - len(kinds) <= 4
        assert not [
            one for one in answers if isinstance(one, BaseException) and not isinstance(one, InferenceServerException)
        ]

    run(work)


async def _room_for_two(client: Client) -> None:
    """Both places of `narrow` can be had by and by: its worker may still be busy with what nobody waits for."""
    while True:
        calls = [client.infer("narrow", images=pictures((1, 2, number))) for number in range(2)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        failed = [one for one in answers if isinstance(one, BaseException)]
        if not failed:
            return
        assert {refused(one).kind for one in failed if isinstance(one, InferenceServerException)} == {
            "RESOURCE_EXHAUSTED"
        }
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_client_that_waits_no_longer_gives_its_place_back(server: Server, kind: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected(kind, server) as client:
            inputs = client.inputs(images=pictures((1, 2, 3)))
            if kind == "grpc":
                hasty = client.triton.infer("narrow", inputs, client_timeout=0.05)
                await client.refused("DEADLINE_EXCEEDED", hasty)
            else:
                hurried = http_aio.InferenceServerClient(server.url.removeprefix("http://"), conn_timeout=0.05)
                with pytest.raises(TimeoutError):
                    await hurried.infer("narrow", inputs)
                await hurried.close()
            await _room_for_two(client)

    asyncio.run(main())
    gc.collect()  # see `pytestmark`


def test_a_cancelled_call_gives_its_place_back(run: Run) -> None:
    async def work(client: Client) -> None:
        calls = [asyncio.ensure_future(client.infer("narrow", images=pictures((1, 2, 3)))) for _ in range(2)]
        await asyncio.wait(calls, timeout=0.05)
        for call in calls:
            call.cancel()
        await _room_for_two(client)

    run(work)


def test_compression_and_parameters(run: Run) -> None:
    async def work(client: Client) -> None:
        x = np.zeros((500, 4), np.float32)
        coded: dict[str, Any] = {"compression_algorithm": "gzip"}
        if client.kind == "http":
            coded = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
        answer = await client.triton.infer("pairs", client.inputs(a=x, b=x + 1), parameters={"note": "x"}, **coded)
        assert answer.as_numpy("total").tolist() == (x + 1).tolist()
        late = client.triton.infer("narrow", client.inputs(images=pictures((1, 2, 3))), timeout=20_000)
        assert "0.02 s" in await client.refused("DEADLINE_EXCEEDED", late)

    run(work)


def test_shared_memory_is_read_and_written(run: Run) -> None:
    async def work(client: Client) -> None:
        name = f"visionpool-aio-{client.kind}"
        handle = shm.create_shared_memory_region(name, f"/{name}", 96)
        try:
            await client.triton.register_system_shared_memory("aio", f"/{name}", 96)
            shm.set_shared_memory_region(handle, [ROWS, ROWS + 1])
            a, b = client.inputs(a=ROWS, b=ROWS)
            a.set_shared_memory("aio", 32)
            b.set_shared_memory("aio", 32, offset=32)
            output = client.output("total")
            output.set_shared_memory("aio", 32, offset=64)
            await client.triton.infer("pairs", [a, b], outputs=[output])
            found = shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=64).copy()
            assert found.tolist() == (ROWS + ROWS + 1).tolist()
            said = await client.triton.get_system_shared_memory_status()
            names = [one["name"] for one in said] if client.kind == "http" else list(said.regions)
            assert names == ["aio"]
            await client.triton.unregister_system_shared_memory("aio")
        finally:
            shm.destroy_shared_memory_region(handle)

    run(work)


def test_strings_are_read_from_and_written_to_shared_memory(run: Run) -> None:
    async def work(client: Client) -> None:
        name, x = f"visionpool-aio-text-{client.kind}", array_of("BYTES", [1, 3])
        packed = serialize_byte_tensor(x)
        size = len(packed.item())
        handle = shm.create_shared_memory_region(name, f"/{name}", 2 * size)
        try:
            await client.triton.register_system_shared_memory("text", f"/{name}", 2 * size)
            shm.set_shared_memory_region(handle, [packed])
            (tensor,) = client.inputs(x=x)
            tensor.set_shared_memory("text", size)
            output = client.output("y")
            output.set_shared_memory("text", size, offset=size)
            await client.triton.infer("text", [tensor], outputs=[output])
            assert shm.get_contents_as_numpy(handle, np.object_, [1, 3], offset=size).tolist() == x.tolist()
            await client.triton.unregister_system_shared_memory()
        finally:
            shm.destroy_shared_memory_region(handle)

    run(work)


def test_a_model_goes_and_comes_back(run: Run) -> None:
    async def work(client: Client) -> None:
        await client.triton.unload_model("reloaded")
        assert not await client.triton.is_model_ready("reloaded")
        said = await client.triton.get_model_repository_index()
        names = [one["name"] for one in said] if client.kind == "http" else [one.name for one in said.models]
        assert {"pairs", "reloaded"} <= set(names)
        await client.triton.load_model("reloaded")
        assert await client.triton.is_model_ready("reloaded")
        settings = await client.triton.get_log_settings()
        assert "log_verbose_level" in (settings if client.kind == "http" else settings.settings)

    run(work)


def test_what_cannot_be_loaded_says_why_and_what_is_loaded_goes_on(run: Run) -> None:
    async def work(client: Client) -> None:
        for name in ("broken", "nothing"):
            with pytest.raises(InferenceServerException, match=f"failed to load '{name}'"):
                await client.triton.load_model(name)
        text = await client.refused("UNIMPLEMENTED", client.triton.load_model("pairs", config='{"max_batch_size": 8}'))
        assert "failed to load 'pairs'" in text
        assert (await client.infer("pairs", a=ROWS, b=ROWS)).as_numpy("total").tolist() == (ROWS + ROWS).tolist()

    run(work)


class TestStreams:
    @staticmethod
    def stream(server: Server, *requests: dict[str, Any], **said: Any) -> list[tuple[Any, Any]]:
        """What a stream of these requests brings back."""

        async def main() -> list[tuple[Any, Any]]:
            async with asyncio.timeout(PATIENCE), connected("grpc", server) as client:

                async def send() -> AsyncIterator[dict[str, Any]]:
                    for request in requests:
                        yield {**request, "inputs": client.inputs(**request["inputs"])}

                return [answer async for answer in client.triton.stream_infer(send(), **said)]

        return asyncio.run(main())

    @pytest.mark.parametrize("said", [{}, {"compression_algorithm": "gzip"}])
    def test_answers_come_in_order_and_the_stream_ends_with_the_last(self, server: Server, said: Any) -> None:
        requests = [
            {"model_name": "pairs", "inputs": {"a": ROWS * number, "b": ROWS}, "request_id": str(number)}
            for number in range(150)
        ]
        answers = self.stream(server, *requests, **said)
        assert [result.get_response().id for result, _ in answers] == [str(number) for number in range(150)]
        assert answers[149][0].as_numpy("total").tolist() == (ROWS * 149 + ROWS).tolist()

    def test_a_timeout_is_that_requests_alone(self, server: Server) -> None:
        good = {"model_name": "pairs", "inputs": {"a": ROWS, "b": ROWS}, "request_id": "good"}
        late = {"model_name": "narrow", "inputs": {"images": pictures((1, 2, 3))}, "timeout": 20_000}
        answers = self.stream(server, good, late, good)
        assert [error is None for _, error in answers] == [True, False, True]
        assert "no answer within 0.02 s" in str(answers[1][1])
        assert answers[2][0].get_response().id == "good"

    def test_a_deadline_of_the_client_ends_the_whole_stream(self, server: Server) -> None:
        """Who notices first tells it: the server of that request, or gRPC of the stream."""
        slow = {"model_name": "narrow", "inputs": {"images": pictures((1, 2, 3))}}
        try:
            ((result, error),) = self.stream(server, slow, stream_timeout=0.05)
        except grpc.RpcError as ended:
            assert ended.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        else:
            assert result is None
            assert "no answer within" in str(error)

    def test_a_bad_request_is_told_in_its_place(self, server: Server) -> None:
        good = {"model_name": "pairs", "inputs": {"a": ROWS, "b": ROWS}}
        bad = {"model_name": "pairs", "inputs": {"a": ROWS}}
        slow = {"model_name": "narrow", "inputs": {"images": pictures((200, 20, 10))}}
        answers = self.stream(server, good, bad, slow, good)
        assert [error is None for _, error in answers] == [True, False, True, True]
        assert "'b' is missing" in str(answers[1][1])
        assert json.loads(answers[2][0].as_numpy("result")[0])["labels"][0] == "red"
