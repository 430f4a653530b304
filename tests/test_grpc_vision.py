"""visionpool.v1 and the HTTP API on one service: the same answers and the same errors; and streams of frames."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
import visionpool
from visionpool import errors
from visionpool.v1 import vision_pb2 as v1
from visionpool.v1 import vision_pb2_grpc
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.budget import ByteBudget
from visionpool_server.api.errors import STATUS
from visionpool_server.api.grpc_errors import packed
from visionpool_server.api.grpc_frames import in_flight
from visionpool_server.api.grpc_server import GrpcOptions
from visionpool_server.service import Service

from tests.local_server import LocalServer, local_server
from tests.real_server import picture, write_model
from tests.scripted_grpc import Connect, connecting

RED, GREEN = picture((200, 20, 30)), picture((20, 200, 30))
BROKEN = RED[:60]
SMALL = BodyLimits(max_bytes=100_000, max_pictures=4, budget=ByteBudget(300_000))
METHODS = v1.DESCRIPTOR.services_by_name["Vision"].methods_by_name
Ask = Callable[[Any], object]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """`colours` is good; `slow` takes 50 ms, one picture at a time; `narrow` 0.4 s with two places; `late` gives up before
    it answers; `failing` fails on pictures of pure red (250, 0, 0)."""
    folder = tmp_path_factory.mktemp("models")
    alone = {"workers": 1, "batching": {"max_batch_size": 1, "max_queue_size": 1}}
    write_model(folder / "colours")
    write_model(folder / "slow", {"latency_ms": 50}, workers=1, batching={"max_batch_size": 1})
    write_model(folder / "narrow", {"latency_ms": 400}, **alone)
    write_model(folder / "late", {"latency_ms": 1000}, batching={"timeout_ms": 100})
    write_model(folder / "failing", {"fail": [250, 0, 0]})
    with local_server(folder, SMALL, max_pixels=1_000_000) as running:
        yield running


@pytest.fixture(params=["GrpcClient", "AsyncGrpcClient"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connecting(request.param) as make:
        yield make


@pytest.fixture
def client(server: LocalServer, connect: Connect) -> visionpool.GrpcClient:
    return connect(server.grpc, retries=0, timeout=20)


@pytest.fixture
def http(server: LocalServer) -> Iterator[visionpool.Client]:
    with visionpool.Client(server.http, retries=0, timeout=20) as made:
        yield made


@pytest.fixture
def stub(server: LocalServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield vision_pb2_grpc.VisionStub(channel)  # type: ignore[no-untyped-call]


def all_places_free(server: LocalServer, model: str) -> bool:
    """Whether they are, within a few seconds."""
    pool = server.models.get(model).pool
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with pool.places(pool._places):
                return server.limits.budget.used == 0
        except errors.QueueFull:
            time.sleep(0.02)
    return False


# The same answers


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.predict("colours", RED),
        lambda client: client.predict("colours", RED, top_k=1),
        lambda client: client.predict("colours", RED, score_threshold=0.1, classes=["red", 1]),
        lambda client: client.predict("colours", RED, classes="blue, red"),
        lambda client: client.predict("colours", np.random.default_rng(1).integers(0, 255, (37, 51, 3), np.uint8)),
        lambda client: client.predict_many("colours", [RED, GREEN, RED]),
        lambda client: client.predict_full("colours", [GREEN, RED]).results,
        lambda client: client.predict_full("colours", RED).timings_ms.keys(),
        lambda client: client.annotate("colours", RED),
        lambda client: client.annotate("colours", RED, format="png", top_k=1),
        lambda client: client.models(),
        lambda client: client.model("colours"),
    ],
)
def test_both_transports_answer_the_same(http: visionpool.Client, client: visionpool.GrpcClient, ask: Ask) -> None:
    assert ask(client) == ask(http)


def test_what_is_told_of_a_model_has_the_same_types(http: visionpool.Client, client: visionpool.GrpcClient) -> None:
    ours, theirs = client.model("colours").raw, http.model("colours").raw
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


# The same errors


@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        (errors.ModelNotFound, lambda client: client.predict("none", RED)),
        (errors.ModelNotFound, lambda client: client.model("none")),
        (errors.ModelNotFound, lambda client: client.annotate("none", RED)),
        (errors.InvalidOption, lambda client: client.predict("colours", RED, score_threshold=1.5)),
        (errors.InvalidOption, lambda client: client.predict("colours", RED, score_threshold=float("nan"))),
        (errors.InvalidOption, lambda client: client.predict("colours", RED, top_k=0)),
        (errors.InvalidOption, lambda client: client.predict("colours", RED, classes=["mauve"])),
        (errors.InvalidOption, lambda client: client.predict("colours", RED, iou_threshold=0.5)),
        (errors.InvalidOption, lambda client: client.predict("colours", RED, timeout=4000)),
        (errors.InvalidImage, lambda client: client.predict("colours", BROKEN)),
        (errors.InvalidImage, lambda client: client.predict_many("colours", [RED, BROKEN])),
        (errors.InvalidImage, lambda client: client.annotate("colours", BROKEN)),
        (errors.UnsupportedMedia, lambda client: client.predict("colours", b"no picture at all")),
        (errors.TooLarge, lambda client: client.predict("colours", bytes(150_000))),
        (errors.TooLarge, lambda client: client.predict("colours", bytes(350_000))),
        (errors.TooLarge, lambda client: client.predict("colours", picture((1, 2, 3), (1500, 1000)))),
        (errors.DeadlineExceeded, lambda client: client.predict("late", RED)),
        (errors.DeadlineExceeded, lambda client: client.predict("slow", RED, timeout=0.01)),
        (errors.InferenceFailed, lambda client: client.predict("failing", picture((250, 0, 0)))),
    ],
)
def test_both_transports_refuse_the_same(
    http: visionpool.Client, client: visionpool.GrpcClient, kind: type[errors.VisionpoolError], ask: Ask
) -> None:
    told = []
    for each in (http, client):
        with pytest.raises(errors.VisionpoolError) as caught:
            ask(each)
        told.append(caught.value)
    ours, theirs = told[1], told[0]
    assert type(ours) is type(theirs) is kind
    if kind not in (errors.DeadlineExceeded, errors.TooLarge):  # gRPC itself refuses what is far too large
        assert (ours.message, ours.hint) == (theirs.message, theirs.hint)


def test_more_pictures_than_a_request_may_have_are_too_large(
    http: visionpool.Client, client: visionpool.GrpcClient
) -> None:
    with pytest.raises(errors.TooLarge, match="at most 4"):
        client.predict_many("colours", [RED] * 5)


def test_a_full_queue_says_when_to_come_back_and_is_asked_again(server: LocalServer, connect: Connect) -> None:
    pool = server.models.get("narrow").pool
    with pool.places(pool._places), pytest.raises(errors.QueueFull, match="waiting already") as caught:
        connect(server.grpc, retries=0).predict("narrow", RED)
    assert caught.value.retry_after >= 0.05
    pool.admit(pool._places)
    try:
        asyncio.run(_predict_while_full(server, pool))
    finally:
        assert all_places_free(server, "narrow")


async def _predict_while_full(server: LocalServer, pool: Any) -> None:
    async with visionpool.AsyncGrpcClient(server.grpc, timeout=15, retries=50) as client:
        asking = asyncio.ensure_future(client.predict("narrow", RED))
        await asyncio.sleep(0.2)
        assert not asking.done()
        pool.release(pool._places)
        await asyncio.wait_for(asking, 15)


def test_bytes_over_the_budget_of_all_transports_are_refused(
    server: LocalServer, client: visionpool.GrpcClient
) -> None:
    with server.limits.budget.hold() as held:
        held.take(300_000 - len(RED))
        client.predict("colours", RED)
        with pytest.raises(errors.QueueFull, match="of requests already"):
            client.predict_many("colours", [RED, RED])
    assert server.limits.budget.used == 0


def test_an_error_carries_its_status_its_message_and_itself(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(v1.PredictRequest(model="none", pictures=[RED]))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.NOT_FOUND
    told = json.loads(dict(error.trailing_metadata())["visionpool-error-bin"])
    assert told["code"] == "model_not_found" and told["message"] == "no model 'none'"
    assert error.details() == f"{told['message']} ({told['hint']})"


@pytest.mark.parametrize("kind", errors.subclasses(), ids=lambda kind: kind.code)
def test_every_error_has_the_status_of_the_table(
    server: LocalServer, stub: Any, monkeypatch: pytest.MonkeyPatch, kind: type[errors.VisionpoolError]
) -> None:
    async def fail(*_: object) -> None:
        raise kind("what is wrong", hint="what to do")

    monkeypatch.setattr(Service, "predict_many", fail)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(v1.PredictRequest(model="colours", pictures=[RED]), timeout=10)
    assert caught.value.code().name == STATUS[kind].grpc
    assert caught.value.details() == "what is wrong (what to do)"
    with visionpool.GrpcClient(server.grpc, retries=0) as client, pytest.raises(errors.VisionpoolError) as ours:
        client.predict("colours", RED)
    assert type(ours.value) is kind


def test_what_nobody_foresaw_is_logged_and_not_told(
    client: visionpool.GrpcClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("secret")

    for method in ("predict", "predict_many"):
        monkeypatch.setattr(Service, method, fail)
    with caplog.at_level(logging.ERROR):
        for ask in (lambda: client.predict("colours", RED), lambda: list(client.stream("colours", [RED]))):
            with pytest.raises(errors.InternalError, match="an error of ours") as caught:
                ask()
            assert "secret" not in str(caught.value)
    assert caplog.text.count("RuntimeError: secret") == 2


def test_an_error_with_a_very_long_text_still_fits_into_the_metadata(client: visionpool.GrpcClient) -> None:
    with pytest.raises(errors.ModelNotFound, match=r"no model 'ü*…"):
        client.predict("ü" * 5000, RED)
    assert len(packed(errors.InvalidImage("ü" * 9000, hint="ü" * 9000))) < 3000


def test_requests_that_clients_of_ours_do_not_send_are_refused(stub: Any) -> None:
    with pytest.raises(grpc.RpcError, match="no picture"):
        stub.Predict(v1.PredictRequest(model="colours"))
    with pytest.raises(grpc.RpcError, match="format 9"):
        stub.Annotate(v1.AnnotateRequest(model="colours", picture=RED, format=9))  # type: ignore[arg-type]
    with pytest.raises(grpc.RpcError, match="no version '7'"):
        stub.GetModel(v1.GetModelRequest(model="colours", version="7"))
    with pytest.raises(grpc.RpcError, match="names no model"):
        list(stub.PredictStream(iter([v1.PredictStreamRequest(picture=RED)])))


@pytest.fixture
def channel(server: LocalServer) -> Iterator[Any]:
    """For bytes that no stub would send."""
    with grpc.insecure_channel(server.grpc) as made:
        yield made


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_are_the_callers_fault(channel: Any, method: str) -> None:
    path = f"/visionpool.v1.Vision/{method}"
    with pytest.raises(grpc.RpcError, match=f"this is no {method}Request") as caught:
        if METHODS[method].client_streaming:
            list(channel.stream_stream(path)(iter([b"\xff"]), timeout=10))
        else:
            channel.unary_unary(path)(b"\xff", timeout=10)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert json.loads(dict(error.trailing_metadata())["visionpool-error-bin"])["code"] == "invalid_request"


def test_a_stream_answers_what_came_before_bytes_that_are_no_message(channel: Any) -> None:
    frame = v1.PredictStreamRequest(model="colours", picture=RED).SerializeToString()
    answers = channel.stream_stream("/visionpool.v1.Vision/PredictStream")(iter([frame, frame, b"\xff", frame]))
    seen = []
    with pytest.raises(grpc.RpcError, match="this is no PredictStreamRequest"):
        for answer in answers:
            seen.append(v1.PredictStreamResponse.FromString(answer).WhichOneof("outcome"))
    assert seen == ["result", "result"]


def test_an_annotated_picture_comes_with_its_result(stub: Any) -> None:
    response = stub.Annotate(v1.AnnotateRequest(model="colours", version="1", picture=RED))
    assert response.format == v1.PICTURE_FORMAT_JPEG and response.result.classification.labels[0] == "red"
    assert response.timings.infer_ms >= 0 and (response.model, response.version) == ("colours", "1")


# Deadlines and cancellation


def test_the_callers_deadline_ends_the_work_and_frees_its_place(server: LocalServer, stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(v1.PredictRequest(model="narrow", pictures=[RED]), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert all_places_free(server, "narrow")


def test_a_cancelled_call_frees_its_place(server: LocalServer, stub: Any) -> None:
    pool = server.models.get("narrow").pool
    call = stub.Predict.future(v1.PredictRequest(model="narrow", pictures=[RED, RED]))
    deadline = time.monotonic() + 5
    while not pool._admitted and time.monotonic() < deadline:
        time.sleep(0.005)
    assert pool._admitted == 2
    call.cancel()
    deadline = time.monotonic() + 0.3  # before the work could have ended by itself
    while pool._admitted and time.monotonic() < deadline:
        time.sleep(0.005)
    assert pool._admitted == 0
    assert all_places_free(server, "narrow")


def test_clients_may_ping_between_calls_as_often_as_during_them() -> None:
    options = dict(GrpcOptions().channel())
    assert options["grpc.keepalive_permit_without_calls"] == 1  # else three pings in two hours, and the server hangs up
    assert options["grpc.http2.min_ping_interval_without_data_ms"] <= 6_000


def test_health_is_that_of_the_server(server: LocalServer, client: visionpool.GrpcClient) -> None:
    assert client.live() and client.ready()
    try:
        server.set_health(2)
        assert client.live() and not client.ready()
    finally:
        server.set_health(1)


# Streams


def colour_of(result: visionpool.Result) -> str:
    assert isinstance(result, visionpool.ClassifyResult)
    return result.labels[0]


def test_frames_are_answered_in_their_order(client: visionpool.GrpcClient) -> None:
    frames = [RED if i % 3 else GREEN for i in range(200)]
    results = list(client.stream("colours", frames, top_k=1))
    assert [colour_of(result) for result in results] == ["red" if i % 3 else "green" for i in range(200)]


def test_a_frame_gets_the_result_of_a_single_picture(http: visionpool.Client, client: visionpool.GrpcClient) -> None:
    pixels = np.random.default_rng(2).integers(0, 255, (48, 64, 3), np.uint8)
    (result,) = client.stream("colours", [pixels], encoding="lossless", top_k=2)
    assert result == http.predict("colours", pixels, top_k=2)


def test_a_stream_without_frames_has_no_results(client: visionpool.GrpcClient) -> None:
    assert list(client.stream("colours", [])) == []


def test_a_video_file_is_read_by_opencv_and_answered_frame_by_frame(
    client: visionpool.GrpcClient, tmp_path: Path
) -> None:
    file = str(tmp_path / "video.avi")
    writer = cv2.VideoWriter(file, cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for i in range(20):
        writer.write(np.full((48, 64, 3), (0, 0, 255) if i < 10 else (255, 0, 0), np.uint8))
    writer.release()
    capture = cv2.VideoCapture(file)
    colours = [colour_of(result) for result in client.stream("colours", capture)]
    capture.release()
    assert colours == ["red"] * 10 + ["blue"] * 10


def test_a_bad_frame_is_an_error_of_its_own(client: visionpool.GrpcClient) -> None:
    frames = [RED, BROKEN, GREEN, b"no picture", bytes(150_000), RED]
    outcomes = list(client.stream("colours", frames, errors="yield"))
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "ClassifyResult", "InvalidImage", "ClassifyResult", "UnsupportedMedia", "TooLarge", "ClassifyResult",
    ]  # fmt: skip
    seen: list[str] = []
    with pytest.raises(errors.InvalidImage):
        seen.extend(map(colour_of, client.stream("colours", frames)))
    assert seen == ["red"]


def test_what_reading_a_frame_raises_ends_the_stream_after_the_results_before(client: visionpool.GrpcClient) -> None:
    def frames() -> Iterator[bytes]:
        yield RED
        yield GREEN
        raise OSError("the camera is gone")

    seen = []
    with pytest.raises(OSError, match="the camera is gone"):
        for result in client.stream("colours", frames()):
            seen.append(colour_of(result))
    assert seen == ["red", "green"]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (errors.ModelNotFound, {"model": "none"}),
        (errors.InvalidOption, {"model": "colours", "iou_threshold": 0.5}),
        (errors.InvalidOption, {"model": "colours", "score_threshold": 7}),
    ],
)
def test_what_is_wrong_with_all_frames_ends_the_stream(
    client: visionpool.GrpcClient, kind: type[errors.VisionpoolError], arguments: dict[str, Any]
) -> None:
    with pytest.raises(kind):
        list(client.stream(frames=[RED] * 100, errors="yield", **arguments))


def test_a_frames_own_timeout_is_its_own_error(client: visionpool.GrpcClient) -> None:
    outcomes = list(client.stream("narrow", [RED], errors="yield", timeout=0.05))
    assert [type(outcome) for outcome in outcomes] == [errors.DeadlineExceeded]


def test_a_stream_to_nowhere_is_a_failed_connection(connect: Connect, free_port: int) -> None:
    with pytest.raises(errors.ConnectionFailed, match="nothing answers"):
        list(connect(f"127.0.0.1:{free_port}").stream("m", [RED]))


def test_the_server_reads_no_more_frames_than_it_has_room_for(server: LocalServer, stub: Any) -> None:
    room = in_flight(server.models.get("slow"))
    watched = server.vision
    watched.frames_read = watched.frames_answered = watched.most_ahead = 0
    frames = [v1.PredictStreamRequest(model="slow", picture=RED)] * 40
    assert len(list(stub.PredictStream(iter(frames), timeout=30))) == 40
    assert (watched.frames_read, watched.frames_answered) == (40, 40)
    assert watched.most_ahead == room == 4


def test_the_client_reads_no_more_frames_than_are_wanted_in_flight(server: LocalServer, connect: Connect) -> None:
    taken, ahead = 0, []

    def frames() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(30):
            taken += 1
            yield RED

    for answered, _ in enumerate(connect(server.grpc).stream("slow", frames(), in_flight=3)):
        ahead.append(taken - answered)
    assert taken == 30 and 2 <= max(ahead) <= 4  # three, and the next as soon as one is answered


def test_a_full_queue_slows_a_stream_down_and_loses_nothing(server: LocalServer, client: visionpool.GrpcClient) -> None:
    pool = server.models.get("slow").pool
    pool.admit(pool._places)
    results = client.stream("slow", [RED] * 6, top_k=1)
    release = asyncio.run_coroutine_threadsafe(_released(pool), server._loop)
    assert [colour_of(result) for result in results] == ["red"] * 6
    release.result(5)
    assert all_places_free(server, "slow")


async def _released(pool: Any) -> None:
    await asyncio.sleep(0.4)
    pool.release(pool._places)


def test_bytes_over_the_budget_slow_a_stream_down_too(server: LocalServer, client: visionpool.GrpcClient) -> None:
    budget = server.limits.budget
    budget.used += budget.limit
    asyncio.run_coroutine_threadsafe(_given_back(budget), server._loop)
    assert [colour_of(result) for result in client.stream("colours", [RED] * 3, top_k=1)] == ["red"] * 3
    assert budget.used == 0


async def _given_back(budget: ByteBudget) -> None:
    await asyncio.sleep(0.4)
    budget.used -= budget.limit


def test_leaving_a_stream_early_frees_its_places(server: LocalServer, client: visionpool.GrpcClient) -> None:
    results = client.stream("slow", [RED] * 100)
    next(results)
    results.close()
    assert all_places_free(server, "slow")


def test_an_asynchronous_source_is_read_as_there_is_room(server: LocalServer) -> None:
    taken = 0

    async def frames() -> Any:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield np.full((8, 8, 3), (0, 0, 255), np.uint8)

    async def watch() -> int:
        seen = 0
        async with (
            visionpool.AsyncGrpcClient(server.grpc) as client,
            aclosing(client.stream("slow", frames(), in_flight=4)) as results,
        ):
            async for result in results:
                assert colour_of(result) == "red"
                seen += 1
                if seen == 5:
                    break
        return seen

    assert asyncio.run(watch()) == 5
    assert taken <= 10
    assert all_places_free(server, "slow")


def test_a_cancelled_task_ends_its_stream(server: LocalServer) -> None:
    async def watch() -> None:
        async with visionpool.AsyncGrpcClient(server.grpc) as client:
            async for _ in client.stream("slow", [RED] * 1000):
                pass

    async def leave() -> None:
        task = asyncio.ensure_future(watch())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)

    asyncio.run(leave())
    assert all_places_free(server, "slow")


def test_model_and_options_may_change_within_a_stream(stub: Any) -> None:
    frames = [
        v1.PredictStreamRequest(model="colours", picture=RED, id="a", options=v1.PredictOptions(top_k=1)),
        v1.PredictStreamRequest(picture=RED, id="b"),
        v1.PredictStreamRequest(picture=GREEN, options=v1.PredictOptions(classes=["blue", "red"])),
        v1.PredictStreamRequest(model="failing", picture=picture((250, 0, 0)), id="c"),
        v1.PredictStreamRequest(picture=BROKEN),
    ]
    first, second, third, fourth, fifth = stub.PredictStream(iter(frames))
    assert (first.id, first.model, list(first.result.classification.labels)) == ("a", "colours", ["red"])
    assert (second.id, list(second.result.classification.labels)) == ("b", ["red"])
    assert (third.id, sorted(third.result.classification.labels)) == ("", ["blue", "red"])
    assert (fourth.id, fourth.model, fourth.error.code) == ("c", "failing", "inference_failed")
    assert (fifth.error.code, fifth.HasField("timings")) == ("invalid_image", False)


def test_a_fault_in_the_middle_of_a_stream_comes_after_the_answers_before(stub: Any) -> None:
    frames = [
        v1.PredictStreamRequest(model="colours", picture=RED),
        v1.PredictStreamRequest(picture=RED),
        v1.PredictStreamRequest(model="none", picture=RED),
        v1.PredictStreamRequest(picture=RED),
    ]
    seen = 0
    with pytest.raises(grpc.RpcError, match="no model 'none'"):
        for _ in stub.PredictStream(iter(frames)):
            seen += 1
    assert seen == 2


def test_the_deadline_of_a_stream_holds_for_all_of_it(server: LocalServer, stub: Any) -> None:
    frames = [v1.PredictStreamRequest(model="slow", picture=RED) for _ in range(100)]
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.PredictStream(iter(frames), timeout=0.5))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 4
    assert all_places_free(server, "slow")


class Cable:
    """A TCP connection to a server that can be cut: `address` leads to `target`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        self._listener.close()
        far = socket.create_connection(self._target)
        self._ends = [near, far]
        for source, sink in ((near, far), (far, near)):
            self._threads.append(threading.Thread(target=self._pump, args=(source, sink)))
            self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for end in self._ends:
            end.close()


@pytest.fixture
def cable(server: LocalServer) -> Iterator[Cable]:
    made = Cable(server.grpc)
    try:
        yield made
    finally:
        made.close()


def test_a_stream_that_breaks_off_says_so_and_is_not_begun_again(
    server: LocalServer, connect: Connect, cable: Cable
) -> None:
    seen = 0
    with pytest.raises(errors.ConnectionFailed):
        for _ in connect(cable.address).stream("slow", [RED] * 100):
            seen += 1
            if seen == 5:
                cable.cut()
    assert 5 <= seen < 30
    assert all_places_free(server, "slow")


def test_a_stream_that_outlives_its_connection_says_so_and_what_to_do(tmp_path: Path, connect: Connect) -> None:
    write_model(tmp_path / "slow", {"latency_ms": 50})
    old = (("grpc.max_connection_age_ms", 300), ("grpc.max_connection_age_grace_ms", 300))
    with local_server(tmp_path, channel=old) as server:
        stream = connect(server.grpc).stream("slow", [RED] * 1000)
        with pytest.raises(errors.ConnectionFailed, match="--grpc-max-connection-age"):
            list(stream)


def test_a_call_whose_connection_breaks_gives_its_place_back(
    server: LocalServer, connect: Connect, cable: Cable
) -> None:
    """The client asks again, and nobody is there."""
    cut = threading.Timer(0.2, cable.cut)
    cut.start()
    with pytest.raises(errors.ConnectionFailed, match="nothing answers"):
        connect(cable.address).predict("narrow", RED)
    cut.join(5)
    assert all_places_free(server, "narrow")
