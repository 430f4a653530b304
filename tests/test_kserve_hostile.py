"""Requests that are small and ask for much: they are refused early, cost little, and leave nothing behind.

What is counted is the server's work, never the time on the clock: its CPU seconds for a request and for one four times as
large, its memory at most and afterwards, and who is answered first.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc.aio
import httpx
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2 as pb
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.budget import ByteBudget
from visionpool_server.api.kserve.grpc import SERVICE_NAME, KserveGrpc
from visionpool_server.api.kserve.messages import InferRequest, InferResponse

from tests.kserve_models import PATIENCE, Refused, operator, write_yaml
from tests.kserve_stand_in import StandIn, application
from tests.real_server import Server, serving, write_model

if TYPE_CHECKING:
    from visionpool_server.api.kserve.protocol import Kserve

MEGABYTE = 2**20
SLACK = 32 * MEGABYTE  # of memory, that allocators keep
TICK = 0.05  # CPU seconds, below which they are not measured
REFUSALS = {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "NOT_FOUND"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a server's memory was at most")

Send = Callable[["Asker", Any], str]  # a ModelInferRequest -> a gRPC status, whichever way it went


class Cost(NamedTuple):
    """`seconds` of the CPU; `peak` and `kept`: bytes of memory above what there was before."""

    seconds: float
    peak: int
    kept: int


class Asker:
    def __init__(self, server: Server) -> None:
        self._process = psutil.Process(server.process.pid)
        self._channel = grpc.insecure_channel(server.grpc, [("grpc.max_receive_message_length", -1)])
        self.http = httpx.Client(base_url=server.url, timeout=PATIENCE)

    def call(self, raw: bytes, compression: grpc.Compression | None = None) -> Any:
        """The call of an inference over gRPC, under way."""
        method: Any = self._channel.unary_unary(f"/{SERVICE_NAME}/ModelInfer")
        return method.future(raw, timeout=PATIENCE, compression=compression)

    def send(self, raw: bytes, compression: grpc.Compression | None = None) -> str:
        return str(self.call(raw, compression).code().name)

    def post(self, model: str, body: bytes, **headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.http.post(f"/v2/models/{model}/infer", content=body, headers=named)
        return "OK" if answer.status_code == 200 else Refused(answer.status_code, answer.text).kind

    def cost(self, work: Callable[[], object]) -> Cost:
        self._status("VmRSS")
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")  # the peak counts from here
        seconds, memory = self._seconds(), self._status("VmRSS")
        work()
        return Cost(self._seconds() - seconds, self._status("VmHWM") - memory, self._status("VmRSS") - memory)

    def _seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _status(self, key: str) -> int:
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    def close(self) -> None:
        self._channel.close()
        self.http.close()


def over_grpc(asker: Asker, request: Any) -> str:
    return asker.send(request.SerializeToString())


def over_http(asker: Asker, request: Any) -> str:
    head, tails = http_body(request)
    return asker.post(request.model_name, head + tails, inference_header_content_length=str(len(head)))


def http_body(request: Any) -> tuple[bytes, bytes]:
    """The same request as JSON, and its tensors in binary."""
    said: dict[str, Any] = {"inputs": [], "outputs": [_named(output) for output in request.outputs]}
    if request.id:
        said["id"] = request.id
    if request.parameters:
        said["parameters"] = _plain(request.parameters)
    for at, tensor in enumerate(request.inputs):
        entry = {**_named(tensor), "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if len(request.raw_input_contents) > at:
            entry.setdefault("parameters", {})["binary_data_size"] = len(request.raw_input_contents[at])
        said["inputs"].append(entry)
    return json.dumps(said).encode(), b"".join(request.raw_input_contents)


def _named(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, **({"parameters": _plain(tensor.parameters)} if tensor.parameters else {})}


def _plain(parameters: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    folder = tmp_path_factory.mktemp("hostile")
    write_model(folder / "colours")
    write_yaml(operator(folder / "ones", "Neg", "FP32", ["n", 3]), batching={"sizes": [1]})
    operator(folder / "plain", "Neg", "FP32", ["n", 3])
    operator(folder / "long", "Neg", "FP32", ["n"])
    write_yaml(operator(folder / "text", "Identity", "BYTES", ["n"]), runtime={"backend": "onnxruntime"})
    with serving(folder) as server:
        made = Asker(server)
        for warm in (fair(), lone("colours", "images", "FP32", [1, 3, 8, 8], bytes(768))):
            assert {send(made, warm) for send in (over_grpc, over_http)} == {"OK"}
        yield made
        made.close()
        assert "Traceback" not in server.log()


@pytest.fixture(autouse=True)
def answers_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "asker" in request.fixturenames:
        asker = request.getfixturevalue("asker")
        assert (over_grpc(asker, fair()), over_http(asker, fair())) == ("OK", "OK")


def lone(model: str, name: str, datatype: str, shape: list[int], raw: bytes) -> Any:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def fair() -> Any:
    return lone("plain", "x", "FP32", [1, 3], bytes(12))


# Handlers in this process


class Limitless(StandIn):
    """For gRPC, whose calls have limits."""

    async def begin(self, request: InferRequest, limit: float | None = None) -> InferResponse:
        assert limit is None
        return await super().begin(request)


class NoContext:
    """Of a call, as far as handlers ask."""

    def time_remaining(self) -> None:
        return None


def handler_of(
    kserve: StandIn, method: str, budget: ByteBudget, context: object = NoContext()
) -> Callable[[bytes], Awaitable[bytes]]:
    class Details:
        invocation_metadata = ()

    Details.method = f"/{SERVICE_NAME}/{method}"  # type: ignore[attr-defined]
    found: Any = KserveGrpc(cast("Kserve", kserve), budget).handlers().service(Details())  # type: ignore[arg-type]
    return lambda raw: found.unary_unary(raw, context)


# Refused early


def empty_pictures(count: int) -> Any:
    return lone("colours", "images", "BYTES", [count], bytes(4 * count))


def tiny_pictures(count: int) -> Any:
    return lone("colours", "images", "UINT8", [count, 1, 1, 3], bytes(3 * count))


def many_rows(count: int) -> Any:
    """For a model that takes one at a time."""
    return lone("ones", "x", "FP32", [count, 3], bytes(12 * count))


def many_raw_tensors(count: int) -> Any:
    request = fair()
    request.raw_input_contents.extend([b""] * count)
    return request


def many_inputs(count: int) -> Any:
    request = fair()
    request.inputs.extend([pb.ModelInferRequest.InferInputTensor()] * count)
    return request


def many_outputs(count: int) -> Any:
    """Of which the last two are the same."""
    request = fair()
    for name in (*range(count), count - 1):
        request.outputs.add(name=str(name))
    return request


def many_dimensions(count: int) -> Any:
    return lone("plain", "x", "FP32", [1] * count, bytes(4))


CASES: list[tuple[Callable[[int], Any], int]] = [
    (empty_pictures, 500_000),
    (tiny_pictures, 200_000),
    (many_rows, 1_000_000),
    (many_raw_tensors, 300_000),
    (many_inputs, 300_000),
    (many_outputs, 40_000),
    (many_dimensions, 1_000_000),
]
either_way = pytest.mark.parametrize("send", [over_grpc, over_http])


@pytest.mark.parametrize(
    ("send", "made", "count"),
    [
        pytest.param(send, made, count, id=f"{made.__name__}-{send.__name__}")
        for made, count in CASES
        for send in (over_grpc, over_http)
        if (made, send) != (many_raw_tensors, over_http)  # there tensors come with their inputs
    ],
)
def test_what_asks_for_too_much_is_refused_at_the_cost_of_reading_it(
    asker: Asker, send: Send, made: Callable[[int], Any], count: int
) -> None:
    small, large = made(count // 4), made(count)
    assert send(asker, large) in REFUSALS
    less, more = (asker.cost(lambda sent=sent: send(asker, sent)) for sent in (small, large))  # type: ignore[misc]
    assert more.seconds <= 12 * max(less.seconds, TICK)
    sent = (
        large.ByteSize() if send is over_grpc else 2 * sum(map(len, http_body(large)))
    )  # JSON grows more than protobuf
    assert more.peak <= 6 * sent + SLACK


def test_inputs_of_two_bytes_each_do_not_fill_the_memory(asker: Asker) -> None:
    """protobuf would make eighty bytes of each."""
    raw = b"\x2a\0" * 8 * MEGABYTE
    cost = asker.cost(lambda: asker.send(raw))
    assert asker.send(raw) == "INVALID_ARGUMENT"
    assert cost.peak <= 6 * len(raw) + SLACK


# Nothing stays


def _text(index: int) -> str:
    return f"{index:08}" * (MEGABYTE // 8)


def in_an_output_parameter(request: Any, text: str) -> None:
    request.outputs.add(name="y").parameters["nothing"].string_param = text


def in_the_name_of_an_output_parameter(request: Any, text: str) -> None:
    request.outputs.add(name="y").parameters[text].int64_param = 1


def in_the_region_of_an_output(request: Any, text: str) -> None:
    parameters = request.outputs.add(name="y").parameters
    parameters["shared_memory_region"].string_param = text
    parameters["shared_memory_byte_size"].int64_param = 12


def in_the_region_of_an_input(request: Any, text: str) -> None:
    del request.raw_input_contents[:]
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = text
    parameters["shared_memory_byte_size"].int64_param = 12


def in_the_name_of_an_output(request: Any, text: str) -> None:
    request.outputs.add(name=text)


def in_the_name_of_an_input(request: Any, text: str) -> None:
    request.inputs[0].name = text


def in_the_datatype(request: Any, text: str) -> None:
    request.inputs[0].datatype = text


def in_the_id(request: Any, text: str) -> None:
    request.id = text


def in_a_parameter(request: Any, text: str) -> None:
    request.parameters["nothing"].string_param = text


def in_the_version(request: Any, text: str) -> None:
    request.model_version = text


def in_the_model(request: Any, text: str) -> None:
    request.model_name = text


PLACES = [
    *(in_an_output_parameter, in_the_name_of_an_output_parameter, in_the_region_of_an_output),
    *(in_the_region_of_an_input, in_the_name_of_an_output, in_the_name_of_an_input, in_the_datatype),
    *(in_the_id, in_a_parameter, in_the_version, in_the_model),
]


@pytest.mark.parametrize(
    ("send", "place"),
    [
        pytest.param(send, place, id=f"{place.__name__}-{send.__name__}")
        for place in PLACES
        for send in (over_grpc, over_http)
        if send is over_grpc or place not in (in_the_version, in_the_model)  # parts of the path, which is bounded
    ],
)
def test_ever_new_large_texts_do_not_stay(asker: Asker, send: Send, place: Callable[[Any, str], None]) -> None:
    def ask(indices: range) -> None:
        for index in indices:
            request = fair()
            place(request, _text(index))
            send(asker, request)

    ask(range(40))
    assert asker.cost(lambda: ask(range(40, 140))).kept <= 40 * MEGABYTE  # allocators keep some


@either_way
def test_ever_new_long_shapes_do_not_stay(asker: Asker, send: Send) -> None:
    def ask(indices: range) -> None:
        for index in indices:
            request = lone("plain", "x", "FP32", [index, *[1] * 1_000_000], bytes(4))
            assert send(asker, request) in REFUSALS

    ask(range(20))
    assert asker.cost(lambda: ask(range(20, 50))).kept <= 96 * MEGABYTE  # of 240 in their tuples alone


class Refusing(NoContext):
    async def abort(self, *_: object) -> None:
        raise grpc.aio.AbortError


def test_a_refusal_over_grpc_leaves_nothing_to_the_garbage_collector() -> None:
    """What it has to find stays for long: it looks at old objects rarely, and does not see how large they are."""
    infer = handler_of(Limitless(), "ModelInfer", ByteBudget(2**30), Refusing())
    raw = lone("nothing", "x", "FP32", [1] * 100, bytes(4)).SerializeToString()

    async def refused() -> None:
        with contextlib.suppress(grpc.aio.AbortError):
            await infer(raw)

    async def work() -> None:
        await refused()
        gc.collect()
        gc.disable()
        try:
            await refused()
            assert gc.collect() == 0
        finally:
            gc.enable()

    asyncio.run(work())


# JSON


def brackets(depth: int) -> bytes:
    return b'{"inputs": ' + b"[" * depth


def closed_brackets(depth: int) -> bytes:
    return brackets(depth) + b"]" * depth + b"}"


def deep_data(depth: int) -> bytes:
    return _data(b"[" * depth + b"1" + b"]" * depth)


def deep_parameters(depth: int) -> bytes:
    return b'{"parameters": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b', "inputs": []}'


def _data(values: bytes) -> bytes:
    return b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": ' + values + b"}]}"


@pytest.mark.parametrize("made", [brackets, closed_brackets, deep_data, deep_parameters])
def test_deep_json_is_refused_at_the_cost_of_reading_it(asker: Asker, made: Callable[[int], bytes]) -> None:
    assert asker.post("plain", made(4_000_000)) == "INVALID_ARGUMENT"
    less, more = (asker.cost(lambda n=n: asker.post("plain", made(n))) for n in (1_000_000, 4_000_000))  # type: ignore[misc]
    assert more.seconds <= 12 * max(less.seconds, TICK)
    assert more.peak <= 20 * len(made(4_000_000)) + SLACK


@pytest.mark.parametrize("path", ["/v2/models/plain/infer", "/v2/logging"])
def test_json_of_nothing_but_lists_does_not_fill_the_memory(asker: Asker, path: str) -> None:
    """As deep as JSON is read, and in that as wide: forty bytes of memory for each on the wire."""
    deep = b"[" * 1000 + b"1" + b"]" * 1000
    body = _data(b"[" + b",".join([deep] * 10_000) + b"]")
    statuses: list[int] = []
    cost = asker.cost(lambda: statuses.append(asker.http.post(path, content=body).status_code))
    assert statuses == [413]
    assert cost.peak <= 4 * len(body) + SLACK


# Compression


def test_a_bomb_over_http_is_refused_before_it_is_inflated_whole(asker: Asker) -> None:
    bomb = gzip.compress(bytes(1000 * MEGABYTE), 9)
    cost = asker.cost(lambda: asker.post("plain", bomb, content_encoding="gzip"))
    assert asker.post("plain", bomb, content_encoding="gzip") == "INVALID_ARGUMENT"
    assert cost.peak <= 80 * MEGABYTE + SLACK  # the limit of a body is 64


def test_a_bomb_of_bombs_is_one(asker: Asker) -> None:
    bomb = gzip.compress(gzip.compress(bytes(1000 * MEGABYTE), 9), 9)
    cost = asker.cost(lambda: asker.post("plain", bomb, content_encoding="gzip"))
    assert asker.post("plain", bomb, content_encoding="gzip") == "INVALID_ARGUMENT"
    assert cost.peak <= SLACK


def test_a_body_of_endless_empty_members_is_refused(asker: Asker) -> None:
    empty = gzip.compress(b"", mtime=0)
    less, more = (
        asker.cost(lambda n=n: asker.post("plain", empty * n, content_encoding="gzip"))  # type: ignore[misc]
        for n in (70_000, 1_400_000)
    )
    assert asker.post("plain", empty * 70_000, content_encoding="gzip") == "INVALID_ARGUMENT"
    assert more.seconds <= 3 * max(less.seconds, TICK)  # twenty times as large
    assert more.peak <= 3 * 20 * 1_400_000 + SLACK


def test_a_body_of_a_few_members_costs_what_one_costs(asker: Asker) -> None:
    request = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}'
    members = b"".join(gzip.compress(request[at : at + 1]) for at in range(len(request)))
    assert asker.post("plain", members, content_encoding="gzip") == "OK"
    assert asker.post("plain", zlib.compress(request), content_encoding="deflate") == "OK"
    assert asker.post("plain", zlib.compress(request) * 2, content_encoding="deflate") == "INVALID_ARGUMENT"


def test_a_bomb_over_grpc_is_refused_before_it_fills_the_memory(asker: Asker) -> None:
    bomb = lone("plain", "x", "FP32", [100, 3], bytes(400 * MEGABYTE)).SerializeToString()
    statuses: list[str] = []
    cost = asker.cost(lambda: statuses.append(asker.send(bomb, grpc.Compression.Gzip)))
    assert statuses == ["RESOURCE_EXHAUSTED"]
    assert cost.peak <= 200 * MEGABYTE


# Others are answered meanwhile


def typed(count: int, model: str = "long") -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[count])
    tensor.contents.fp32_contents.extend([0.5] * count)
    raw: bytes = request.SerializeToString()
    return raw


def test_health_is_answered_while_many_typed_values_are_read(asker: Asker) -> None:
    call = asker.call(typed(15_000_000))
    assert asker.http.get("/v2/health/ready").status_code == 200
    assert not call.done()
    answer = pb.ModelInferResponse.FromString(call.result())
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).sum() == -7_500_000


def order_of(**works: Callable[[], Awaitable[object]]) -> list[str]:
    """The names of works in the order in which they are done, where they are begun in the order given."""
    done: list[str] = []

    async def one(name: str, work: Callable[[], Awaitable[object]]) -> None:
        await work()
        done.append(name)

    async def every() -> None:
        await asyncio.gather(*(one(name, work) for name, work in works.items()))

    asyncio.run(every())
    return done


def test_typed_values_are_not_read_on_the_event_loop() -> None:
    budget, stand_in = ByteBudget(2**30), Limitless()
    infer, live = (handler_of(stand_in, method, budget) for method in ("ModelInfer", "ServerLive"))
    many, few = typed(1_000_000, "echo"), typed(10, "echo")
    assert order_of(infer=lambda: infer(many), health=lambda: live(b"")) == ["health", "infer"]
    assert order_of(infer=lambda: infer(few), health=lambda: live(b"")) == ["infer", "health"]
    assert budget.used == 0


def test_large_json_is_not_read_on_the_event_loop() -> None:
    app = application(StandIn(), BodyLimits())
    head = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1000000], "data": [1'
    body = head + b",1" * 999_999 + b"]}]}"
    infer, live = (
        (lambda: asgi(app, "POST", "/v2/models/echo/infer", body)),
        (lambda: asgi(app, "GET", "/v2/health/live")),
    )
    assert order_of(infer=infer, health=live) == ["health", "infer"]


async def asgi(app: Any, method: str, path: str, body: bytes = b"") -> None:
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        return await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    await app({**scope, "headers": [], "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
    assert sent[0]["status"] == 200


def test_typed_values_count_as_what_they_become_in_memory() -> None:
    budget, stand_in = ByteBudget(2**30), Limitless()
    infer = handler_of(stand_in, "ModelInfer", budget)
    raw = typed(1_000_000, "hanging")

    async def work() -> None:
        task = asyncio.ensure_future(infer(raw))
        async with asyncio.timeout(PATIENCE):
            while not stand_in.asked:  # noqa: ASYNC110  the stand-in is made for threads
                await asyncio.sleep(0.01)
        assert budget.used >= 4 * len(raw)
        task.cancel()
        await asyncio.wait([task])
        assert budget.used == 0

    asyncio.run(work())
