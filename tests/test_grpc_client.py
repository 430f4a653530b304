"""Both gRPC clients against a real socket: what they send, and what they make of answers, errors and silence."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
import visionpool
from visionpool import errors
from visionpool.frames import Feed, pictures_of
from visionpool.jpeg import encode_jpeg
from visionpool.v1 import vision_pb2 as v1

from tests.scripted_grpc import Connect, Reply, ScriptedServer, bad, busy, connecting, foreign, good, serving
from tests.scripted_server import JPEG, PNG, RESULT, TIMINGS

SERVING = Reply(b"\x08\x01")
NOT_SERVING = Reply(b"\x08\x02")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving() as scripted:
        yield scripted


@pytest.fixture(params=["GrpcClient", "AsyncGrpcClient"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connecting(request.param) as make:
        yield make


def predict_request(server: ScriptedServer, index: int = 0) -> v1.PredictRequest:
    assert server.requests[index].method == "/visionpool.v1.Vision/Predict"
    return v1.PredictRequest.FromString(server.requests[index].body)


# What is sent


def test_predict_sends_the_picture_and_reads_the_result(server: ScriptedServer, connect: Connect) -> None:
    server.script = [good()]
    assert connect(server.address).predict("shapes", JPEG) == RESULT
    assert predict_request(server) == v1.PredictRequest(model="shapes", pictures=[JPEG])
    agent = server.requests[0].metadata["user-agent"]
    assert isinstance(agent, str) and agent.startswith("visionpool/")


def test_options_are_sent_as_they_are_given_and_only_those(server: ScriptedServer, connect: Connect) -> None:
    server.script = [good()]
    connect(server.address).predict(
        "m",
        JPEG,
        score_threshold=0.4,
        iou_threshold=None,
        top_k=np.int64(3),  # type: ignore[arg-type]
        classes=["person", 7],
        max_detections=0,
    )
    expected = v1.PredictOptions(score_threshold=0.4, top_k=3, classes=["person", "7"], max_detections=0)
    assert predict_request(server).options == expected


def test_classes_may_be_one_string(server: ScriptedServer, connect: Connect) -> None:
    server.script = [good()]
    connect(server.address).predict("m", JPEG, classes="person,7")
    assert list(predict_request(server).options.classes) == ["person", "7"]


@pytest.mark.parametrize("wrong", [{"top_k": 2.5}, {"top_k": 2**40}, {"score_threshold": "much"}, {"top_k": [1]}])
def test_an_option_of_the_wrong_kind_is_refused(server: ScriptedServer, connect: Connect, wrong: Any) -> None:
    with pytest.raises(errors.InvalidOption, match=f"{next(iter(wrong))}: .* is not a number"):
        connect(server.address).predict("m", JPEG, **wrong)
    assert not server.requests


def test_options_that_cannot_be_sent_are_refused_before_anything_is(server: ScriptedServer, connect: Connect) -> None:
    client = connect(server.address)
    with pytest.raises(TypeError, match="no option 'treshold'; there are score_threshold"):
        client.predict("m", JPEG, treshold=0.5)  # type: ignore[call-arg]
    with pytest.raises(errors.InvalidOption, match=r"comma in it \(give its number"):
        client.predict("m", JPEG, classes=["tench, Tinca tinca"])
    with pytest.raises(errors.InvalidOption, match="drawn as 'gif'"):
        client.annotate("m", JPEG, format="gif")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidOption, match="timeout of 0 s"):
        client.predict("m", JPEG, timeout=0)
    assert not server.requests


def test_predict_many_sends_one_request_and_gives_results_in_order(server: ScriptedServer, connect: Connect) -> None:
    second = visionpool.DetectionResult(boxes=((0.5, 1.0, 2.0, 3.0),), scores=(0.5,), label_ids=(0,))
    server.script = [good(RESULT, second)]
    client = connect(server.address)
    assert client.predict_many("m", (picture for picture in (JPEG, PNG))) == [RESULT, second]
    assert list(predict_request(server).pictures) == [JPEG, PNG]
    assert client.predict_many("m", []) == []
    with pytest.raises(errors.InvalidRequest, match="use predict"):
        client.predict_many("m", JPEG)  # type: ignore[arg-type]
    assert len(server.requests) == 1


def test_predict_full_gives_version_and_timings(server: ScriptedServer, connect: Connect) -> None:
    server.script = [good()]
    assert connect(server.address).predict_full("shapes", JPEG) == visionpool.Prediction(
        "shapes", "3", (RESULT,), TIMINGS
    )


def test_annotate_asks_for_a_picture(server: ScriptedServer, connect: Connect) -> None:
    server.script = [Reply(v1.AnnotateResponse(picture=PNG).SerializeToString())]
    assert connect(server.address).annotate("m", JPEG, format="png", score_threshold=0.5) == PNG
    assert server.requests[0].method == "/visionpool.v1.Vision/Annotate"
    assert v1.AnnotateRequest.FromString(server.requests[0].body) == v1.AnnotateRequest(
        model="m", picture=JPEG, format=v1.PICTURE_FORMAT_PNG, options=v1.PredictOptions(score_threshold=0.5)
    )


def test_the_deadline_goes_with_the_call_and_a_timeout_of_the_callers_own_in_the_options_too(
    server: ScriptedServer, connect: Connect
) -> None:
    server.script = [good()]
    client = connect(server.address, timeout=50)
    client.predict("m", JPEG)
    client.predict("m", JPEG, timeout=20.0)
    first, second = (request.time_left for request in server.requests)
    assert first is not None and second is not None
    assert 40 < first < 51 and 10 < second < 21  # gRPC rounds up
    assert not predict_request(server, 0).HasField("options")
    assert 19_000 < predict_request(server, 1).options.timeout_ms <= 20_000


def test_key_and_headers_are_sent(server: ScriptedServer, connect: Connect) -> None:
    server.script = [good()]
    connect(server.address, api_key="k3y", headers={"X-Team": "eyes"}).predict("m", JPEG)
    assert server.requests[0].metadata["authorization"] == "Bearer k3y"
    assert server.requests[0].metadata["x-team"] == "eyes"


def test_an_address_may_have_a_scheme(server: ScriptedServer, connect: Connect) -> None:
    server.script = [good()]
    connect(f"grpc://{server.address}").predict("m", JPEG)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "address", ["http://host:8001", "grpc://", "host:port", "host/path", "host:99999", "", "a@host"]
)
def test_an_address_that_is_none_is_refused(connect: Connect, address: str) -> None:
    with pytest.raises(errors.InvalidOption, match=r"such as 127.0.0.1:8001"):
        connect(address)


# What comes back


@pytest.mark.parametrize("kind", errors.subclasses(), ids=lambda kind: kind.code)
def test_every_error_of_the_server_comes_back_as_its_class(
    server: ScriptedServer, connect: Connect, kind: type[errors.VisionpoolError]
) -> None:
    server.script = [bad("INTERNAL", kind.code, hint="do this")]
    with pytest.raises(errors.VisionpoolError) as caught:
        connect(server.address).predict("m", JPEG)
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == (f"it is {kind.code}", "do this")


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        ("INVALID_ARGUMENT", errors.InvalidRequest, "no proxy in the way"),
        ("UNIMPLEMENTED", errors.NotFound, "gRPC address of a visionpool server"),
        ("UNAUTHENTICATED", errors.Unauthenticated, "pass api_key"),
        ("PERMISSION_DENIED", errors.RequestError, "right one"),
        ("UNAVAILABLE", errors.ConnectionFailed, "its log tells"),
        ("CANCELLED", errors.Cancelled, "proxy"),
        ("INTERNAL", errors.ServiceError, "proxy"),
        ("UNKNOWN", errors.ServiceError, "proxy"),
    ],
)
def test_an_error_of_something_else_is_judged_by_its_status(
    server: ScriptedServer, connect: Connect, status: str, kind: type[errors.VisionpoolError], hint: str
) -> None:
    server.script = [foreign(status)]
    with pytest.raises(kind, match="from elsewhere") as caught:
        connect(server.address, retries=0).models()
    assert type(caught.value) is kind
    assert hint in (caught.value.hint or "")
    assert len(server.requests) == 1


def test_a_connection_that_was_ended_for_its_age_says_so(server: ScriptedServer, connect: Connect) -> None:
    server.script = [Reply(code=grpc.StatusCode.UNAVAILABLE, details="max connection age")]
    with pytest.raises(errors.ConnectionFailed, match="has ended it amid the call") as caught:
        connect(server.address).predict("m", JPEG)
    assert "call again" in (caught.value.hint or "")


def test_a_call_that_a_stopping_server_has_not_begun_with_is_asked_again(
    server: ScriptedServer, connect: Connect
) -> None:
    dropped = Reply(code=grpc.StatusCode.CANCELLED, details="CANCELLED")
    server.script = [dropped, dropped, dropped, good()]
    assert connect(server.address, retries=3).predict("m", JPEG) == RESULT
    assert len(server.requests) == 4
    server.script = [dropped]
    with pytest.raises(errors.ConnectionFailed, match="before it began"):
        connect(server.address, retries=0).models()


def test_an_error_of_a_newer_server_is_judged_by_its_status(server: ScriptedServer, connect: Connect) -> None:
    server.script = [bad("NOT_FOUND", "from_the_future")]
    with pytest.raises(errors.NotFound, match="it is from_the_future") as caught:
        connect(server.address).predict("m", JPEG)
    assert type(caught.value) is errors.NotFound


@pytest.mark.parametrize("told", [[], {"code": "queue_full"}, "text"])
def test_metadata_that_makes_no_sense_is_left_alone(server: ScriptedServer, connect: Connect, told: Any) -> None:
    server.script = [Reply(code=foreign("NOT_FOUND").code, details="gone", error=told)]
    with pytest.raises(errors.NotFound, match="NOT_FOUND: gone"):
        connect(server.address).predict("m", JPEG)


@pytest.mark.parametrize("reply", [Reply(b"\xff"), Reply(v1.PredictResponse(model="m").SerializeToString())])
def test_an_answer_that_makes_no_sense_is_a_service_error(
    server: ScriptedServer, connect: Connect, reply: Reply
) -> None:
    server.script = [reply]
    with pytest.raises(errors.ServiceError):
        connect(server.address).predict("m", JPEG)


def test_a_result_of_an_unknown_kind_is_a_service_error(server: ScriptedServer, connect: Connect) -> None:
    server.script = [Reply(v1.PredictResponse(results=[v1.Result()]).SerializeToString())]
    with pytest.raises(errors.ServiceError, match="too old"):
        connect(server.address).predict("m", JPEG)


def test_an_answer_over_the_clients_limit_says_so(server: ScriptedServer, connect: Connect) -> None:
    server.script = [Reply(v1.AnnotateResponse(picture=bytes(2**20)).SerializeToString())]
    with pytest.raises(errors.TooLarge, match="max_message_mb"):
        connect(server.address, max_message_mb=0.5).annotate("m", JPEG)


# Retries and time


def test_a_busy_server_is_asked_again_with_the_same_bytes(server: ScriptedServer, connect: Connect) -> None:
    server.script = [busy(0.05), bad("UNAVAILABLE", "unavailable", retry_after=0.0), good()]
    started = time.monotonic()
    assert connect(server.address).predict("m", io.BytesIO(JPEG), timeout=20.0) == RESULT
    assert time.monotonic() - started >= 0.05
    assert [predict_request(server, i).pictures[0] for i in range(3)] == [JPEG] * 3
    left = [predict_request(server, i).options.timeout_ms for i in range(3)]
    assert left == sorted(left, reverse=True)
    assert left[0] - left[2] >= 50


def test_retries_end_with_the_last_error(server: ScriptedServer, connect: Connect) -> None:
    server.script = [busy(0.01), busy(0.02), busy(0.03)]
    with pytest.raises(errors.QueueFull, match="it is queue_full") as caught:
        connect(server.address, retries=2).predict("m", JPEG)
    assert caught.value.retry_after == 0.03
    assert len(server.requests) == 3


def test_a_wait_beyond_the_budget_is_not_begun(server: ScriptedServer, connect: Connect) -> None:
    server.script = [busy(120)]
    started = time.monotonic()
    with pytest.raises(errors.QueueFull) as caught:
        connect(server.address, timeout=5).predict("m", JPEG)
    assert caught.value.retry_after == 120.0
    assert time.monotonic() - started < 4
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply", [bad("UNAVAILABLE", "unavailable"), bad("DEADLINE_EXCEEDED", "deadline_exceeded"), foreign("INTERNAL")]
)
def test_other_failures_are_not_retried(server: ScriptedServer, connect: Connect, reply: Reply) -> None:
    server.script = [reply, good()]
    with pytest.raises(errors.ServiceError):
        connect(server.address).predict("m", JPEG)
    assert len(server.requests) == 1


@pytest.mark.parametrize("gone", [foreign("UNAVAILABLE", "Socket closed"), foreign("UNKNOWN", "Stream removed (END)")])
def test_another_server_is_asked_in_place_of_one_that_is_gone(
    server: ScriptedServer, connect: Connect, gone: Reply
) -> None:
    server.script = [gone, good()]
    assert connect(server.address).predict("m", io.BytesIO(JPEG)) == RESULT
    assert [predict_request(server, i).pictures[0] for i in range(2)] == [JPEG] * 2


def test_a_request_with_which_two_servers_went_away_is_not_sent_to_a_third(
    server: ScriptedServer, connect: Connect
) -> None:
    server.script = [foreign("UNAVAILABLE", "Socket closed"), foreign("UNAVAILABLE", "Socket closed"), good()]
    with pytest.raises(errors.ConnectionFailed, match="broke off") as caught:
        connect(server.address, retries=9).predict("m", JPEG)
    assert caught.value.sent
    assert len(server.requests) == 2


def test_several_servers_are_asked_in_turn_and_without_one_the_others(server: ScriptedServer, connect: Connect) -> None:
    server.script = [good()]
    with serving() as second:
        second.script = [good()]
        client = connect(f"ipv4:{server.address},{second.address}")
        deadline = time.monotonic() + 20  # a connection to each is made meanwhile
        while not (server.requests and second.requests) and time.monotonic() < deadline:
            assert client.predict("m", JPEG) == RESULT
        shares = len(server.requests), len(second.requests)
        assert [client.predict("m", JPEG) for _ in range(10)] == [RESULT] * 10
        assert (len(server.requests) - shares[0], len(second.requests) - shares[1]) == (5, 5)
    assert [client.predict("m", JPEG) for _ in range(10)] == [RESULT] * 10


def test_several_servers_of_which_none_answers_are_named(connect: Connect, free_port: int) -> None:
    target = f"ipv4:127.0.0.1:{free_port}"
    with pytest.raises(errors.ConnectionFailed, match=rf"nothing answers at {target}: .*running") as caught:
        connect(target).predict("m", JPEG)
    assert not caught.value.sent


def test_a_slow_server_is_left_at_the_clients_own_limit(server: ScriptedServer, connect: Connect) -> None:
    server.script = [Reply(wait=10.0)]
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match="client's own limit"):
        connect(server.address).predict("m", JPEG, timeout=0.2)
    assert time.monotonic() - started < 5


def test_nothing_listening_is_said_with_the_address(connect: Connect, free_port: int) -> None:
    with pytest.raises(errors.ConnectionFailed, match=rf"nothing answers at 127.0.0.1:{free_port}: .*running"):
        connect(f"127.0.0.1:{free_port}").predict("m", JPEG)


def test_a_name_that_does_not_resolve_is_a_failed_connection(connect: Connect) -> None:
    with pytest.raises(errors.ConnectionFailed, match=r"nothing answers at nowhere\.invalid:8001"):
        connect("nowhere.invalid", timeout=20).predict("m", JPEG)


# Health


def test_health_is_a_matter_of_yes_or_no(server: ScriptedServer, connect: Connect, free_port: int) -> None:
    server.script = [SERVING, NOT_SERVING, SERVING, NOT_SERVING, foreign("UNIMPLEMENTED")]
    client = connect(server.address)
    assert (client.live(), client.live(), client.ready(), client.ready(), client.live()) == (
        (True, True, True, False, False)
    )
    assert {request.method for request in server.requests} == {"/grpc.health.v1.Health/Check"}
    assert {request.body for request in server.requests} == {b""}
    assert not connect(f"127.0.0.1:{free_port}").live()


def test_wait_ready_returns_once_the_server_is_ready(server: ScriptedServer, connect: Connect) -> None:
    server.script = [foreign("UNAVAILABLE"), NOT_SERVING, SERVING]
    connect(server.address).wait_ready(timeout=10)
    assert len(server.requests) == 3


def test_wait_ready_tells_why_it_gave_up(server: ScriptedServer, connect: Connect, free_port: int) -> None:
    server.script = [NOT_SERVING]
    with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.2 s: the health check answers NOT_SERVING"):
        connect(server.address).wait_ready(timeout=0.2)
    with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.3 s: nothing answers at"):
        connect(f"127.0.0.1:{free_port}").wait_ready(timeout=0.3)


def test_wait_ready_finds_a_server_that_comes_later(connect: Connect, free_port: int) -> None:
    with connecting("GrpcClient"), visionpool.GrpcClient(f"127.0.0.1:{free_port}") as early:
        assert not early.live()
    client = connect(f"127.0.0.1:{free_port}")
    with pytest.raises(errors.DeadlineExceeded):
        client.wait_ready(timeout=0.3)
    with serving(port=free_port) as late:
        late.script = [SERVING]
        client.wait_ready(timeout=10)


# Frames


class Capture:
    """Like cv2.VideoCapture: `count` frames, each of its number."""

    def __init__(self, count: int, *, opened: bool = True) -> None:
        self.count, self.taken, self.opened = count, 0, opened

    def isOpened(self) -> bool:
        return self.opened

    def read(self) -> tuple[bool, Any]:
        if self.taken == self.count:
            return False, None
        self.taken += 1
        return True, np.full((8, 8, 3), self.taken, np.uint8)


def test_a_capture_is_read_to_its_end() -> None:
    assert [int(np.asarray(frame)[0, 0, 0]) for frame in pictures_of(Capture(3))] == [1, 2, 3]


def test_what_is_no_sequence_of_frames_is_refused(connect: Connect) -> None:
    client = connect("127.0.0.1:9")
    for single in ("a.mp4", Path("a.mp4"), JPEG, io.BytesIO(JPEG), np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(errors.InvalidRequest, match="use predict"):
            next(iter(client.stream("m", single)))  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidRequest, match="not open"):
        next(iter(client.stream("m", Capture(1, opened=False))))
    for wrong in ({"errors": "ignore"}, {"encoding": "gif"}, {"in_flight": 0}, {"timeout": 0}):
        with pytest.raises(errors.InvalidOption):
            next(iter(client.stream("m", [JPEG], **wrong)))


def test_a_feed_reads_no_further_than_there_is_room() -> None:
    capture = Capture(10)
    feed = Feed(pictures_of(capture), lambda _: v1.PredictStreamRequest(), 3)
    taken: list[Any] = []
    thread = threading.Thread(target=lambda: taken.extend(feed))
    thread.start()
    for room in (1, 4, 5):
        deadline = time.monotonic() + 5
        while capture.taken < room and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert capture.taken == room
        feed.answered()
    feed.close()
    thread.join(5)
    assert not thread.is_alive()
    assert capture.taken <= 6


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3)])
@pytest.mark.parametrize("by", ["opencv", "pillow"])
def test_arrays_become_jpegs_that_look_the_same(
    shape: tuple[int, ...], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros(shape, np.uint8)
    pixels[:10] = (200, 20, 30)[: shape[2]] if len(shape) > 2 else 200
    if by == "pillow":
        monkeypatch.delitem(sys.modules, "cv2")
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(pixels), np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert np.abs(np.asarray(decoded).reshape(shape).astype(int) - pixels).mean() < 3


def test_jpegs_have_their_channels_in_order_and_no_transparency() -> None:
    rgb = np.full((16, 16, 3), (200, 20, 30), np.uint8)
    data = visionpool.pictures.load(rgb, color="rgb", encoding="jpeg").data
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None and np.abs(decoded[8, 8].astype(int) - (30, 20, 200)).max() < 8
    assert visionpool.pictures.load(np.zeros((4, 4, 4), np.uint8), encoding="jpeg").media_type == "image/png"
    with pytest.raises(errors.InvalidImage, match="lossless"):
        encode_jpeg(np.zeros((1, 70_000, 3), np.uint8))


# The package


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_client_is_imported_on_demand_and_needs_neither_httpx_nor_numpy() -> None:
    code = """if True:
        import sys, visionpool
        assert "grpc" not in sys.modules
        assert "GrpcClient" in dir(visionpool)
        visionpool.GrpcClient("127.0.0.1:9").close()
        visionpool.AsyncGrpcClient("127.0.0.1:9")
        heavy = {"httpx", "numpy", "cv2", "visionpool_server", "pydantic"} & sys.modules.keys()
        assert not heavy, heavy
    """
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_grpcio_it_says_what_to_install_and_everything_else_works() -> None:
    code = """if True:
        import sys
        sys.modules["grpc"] = None
        import visionpool
        from visionpool import *
        visionpool.Client().close()
        try:
            visionpool.GrpcClient
        except ImportError as error:
            print(error)
    """
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pip install 'visionpool[grpc]'" in done.stdout


def test_one_client_serves_many_threads_and_tasks(server: ScriptedServer) -> None:
    server.script = [good()]

    async def gather() -> list[visionpool.Result]:
        async with visionpool.AsyncGrpcClient(server.address) as client:
            return await asyncio.gather(*(client.predict("m", JPEG) for _ in range(20)))

    assert asyncio.run(gather()) == [RESULT] * 20
    with visionpool.GrpcClient(server.address) as client:
        threads = [threading.Thread(target=client.predict, args=("m", JPEG)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert len(server.requests) == 28
