"""The server is told to stop, by signals to a real process with clients that are in the middle of something."""

from __future__ import annotations

import itertools
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import cv2
import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from visionpool.v1 import vision_pb2 as v1
from visionpool.v1 import vision_pb2_grpc

from tests.conftest import Serve
from tests.raw_http import Connection, connected
from tests.real_server import GRPC, Server, picture, serving, write_model

BOUND = 60.0  # seconds that anything may take at most
LONG = 600  # and that nothing takes
RED = picture((200, 20, 30))
PREDICT = "/v1/models/colours/predict"
TAKES_NO_MORE = "nothing new is taken any more"
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "colours")


def tell(server: Server, how: signal.Signals = signal.SIGTERM) -> None:
    server.process.send_signal(how)


def vision(channel: grpc.Channel) -> vision_pb2_grpc.VisionStub:
    return vision_pb2_grpc.VisionStub(channel)  # type: ignore[no-untyped-call]  # generated


@pytest.fixture(scope="class")
def draining(colours: Path) -> Iterator[Server]:
    """Told to stop, with ten minutes for the balancers to notice."""
    with serving(colours, "--drain-delay", LONG, "--metrics-port", 0) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=BOUND)
            assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
            tell(server)
            assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watched.cancel()
        yield server
        tell(server)


class TestDelay:
    def test_every_readiness_check_says_no_and_every_liveness_check_yes(self, draining: Server) -> None:
        with httpx.Client(base_url=draining.url, timeout=BOUND) as client:
            assert client.get("/health/ready").status_code == 503
            assert client.get("/v2/health/ready").status_code != 200
            assert client.get("/v2/models/colours/ready").status_code != 200
            assert client.get("/health/live").status_code == 200
            assert client.get("/v2/health/live").status_code == 200
        with grpc.insecure_channel(draining.grpc) as channel:
            triton = GRPCInferenceServiceStub(channel)
            assert not triton.ServerReady(pb.ServerReadyRequest(), timeout=BOUND).ready
            assert not triton.ModelReady(pb.ModelReadyRequest(name="colours"), timeout=BOUND).ready
            assert triton.ServerLive(pb.ServerLiveRequest(), timeout=BOUND).live
            for service in ("", "visionpool.v1.Vision", "inference.GRPCInferenceService"):
                asked = health_pb2.HealthCheckRequest(service=service)
                answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=BOUND)
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING

    def test_new_requests_are_taken_and_http_clients_told_to_connect_elsewhere(self, draining: Server) -> None:
        with connected(draining) as connection:
            connection.post(PREDICT, RED, "Content-Type: image/png")
            answer = connection.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert connection.closed_by_server()
        with grpc.insecure_channel(draining.grpc) as channel:
            asked = v1.PredictRequest(model="colours", pictures=[RED])
            assert len(vision(channel).Predict(asked, timeout=BOUND).results) == 1

    def test_requests_sent_ahead_are_all_answered_and_the_last_one_ends_the_connection(self, draining: Server) -> None:
        with connected(draining) as connection:
            head = (
                f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(RED)}\r\n\r\n"
            )
            connection.send((head.encode() + RED) * 3)
            reader = connection.socket.makefile("rb")
            heads = [_read_answer(reader.readline, reader.read) for _ in range(3)]
            reader.close()
            assert [status for status, _ in heads] == [200, 200, 200]
            assert ["close" in headers for _, headers in heads] == [False, False, True]

    def test_the_port_for_metrics_and_probes_says_so_too(self, draining: Server) -> None:
        url = draining.wait_for(r"metrics +(http://\S+)/metrics").group(1)
        with httpx.Client(base_url=url, timeout=BOUND) as client:
            assert client.get("/health/ready").status_code == 503
            live = client.get("/health/live")
            assert (live.status_code, "connection" in live.headers) == (200, False)
            assert "visionpool_draining 1.0" in client.get("/metrics").text
            assert client.get("/v1/models").status_code == 404
        assert httpx.get(f"{draining.url}/metrics", timeout=BOUND).status_code == 404


def _read_answer(line: Callable[[], bytes], read: Callable[[int], bytes]) -> tuple[int, str]:
    """Its status, and what its Connection header says."""
    status = int(line().split()[1])
    headers = {}
    for header in iter(line, b"\r\n"):
        name, _, value = header.decode().partition(":")
        headers[name.lower()] = value.strip()
    read(int(headers["content-length"]))
    return status, headers.get("connection", "")


class TestLoad:
    """Clients that ask on and on until nobody takes their connection."""

    @pytest.mark.parametrize("delay", [0, 1])
    def test_nothing_is_lost(self, delay: int, tmp_path: Path, serve: Serve) -> None:
        server = serve(write_model(tmp_path / "colours", {"latency_ms": 5}), "--drain-delay", delay)
        kinds = (_ask_kept_alive, _ask_anew, _ask_grpc)
        counts = {kind: Counter[str]() for kind in kinds}
        with ThreadPoolExecutor(3 * 6) as threads:
            asking = [threads.submit(kind, server, counts[kind]) for kind in kinds for _ in range(6)]
            wait_until(lambda: all(count["ok"] > 50 for count in counts.values()))
            tell(server)
            for client in asking:
                client.result(BOUND)
        assert server.process.wait(BOUND) == 0
        grpc_counts = counts.pop(_ask_grpc)
        assert set(grpc_counts) <= {"ok", "UNAVAILABLE", "CANCELLED"}, grpc_counts
        # gRPC's core cancels what comes between its GOAWAY and the moment that a client has read that: see `Gate`.
        assert grpc_counts["CANCELLED"] <= 1, grpc_counts
        for kind, count in counts.items():
            assert set(count) <= {"ok", "503", "refused"}, (kind.__name__, count)
            assert count["refused"] == 6


def wait_until(reached: Callable[[], bool]) -> None:
    """Of what other threads count."""
    until = time.monotonic() + BOUND
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.01)


def _ask_kept_alive(server: Server, count: Counter[str]) -> None:
    with httpx.Client(base_url=server.url, timeout=BOUND) as client:
        while True:
            try:
                answer = client.post(PREDICT, content=RED)
            except httpx.ConnectError:
                count["refused"] += 1
                return
            _note(count, answer)


def _ask_anew(server: Server, count: Counter[str]) -> None:
    while True:
        try:
            _note(count, httpx.post(f"{server.url}{PREDICT}", content=RED, timeout=BOUND))
        except httpx.ConnectError:
            count["refused"] += 1
            return


def _note(count: Counter[str], answer: httpx.Response) -> None:
    if answer.status_code == 503:
        assert answer.headers["retry-after"] and answer.headers["connection"] == "close"
    count["ok" if answer.status_code == 200 else str(answer.status_code)] += 1


def _ask_grpc(server: Server, count: Counter[str]) -> None:
    with grpc.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
        predict = vision(channel).Predict
        while True:
            try:
                predict(v1.PredictRequest(model="colours", pictures=[RED]), timeout=BOUND)
                count["ok"] += 1
            except grpc.RpcError as error:
                count[error.code().name] += 1
                return


class Frames:
    """What a client sends on a stream, whenever the test says so."""

    def __init__(self) -> None:
        self._more = threading.Semaphore(0)
        self._ended = False

    def send(self) -> None:
        self._more.release()

    def end(self) -> None:
        self._ended = True
        self._more.release()

    def __iter__(self) -> Iterator[v1.PredictStreamRequest]:
        for number in itertools.count():
            if not self._more.acquire(timeout=BOUND) or self._ended:
                return
            yield v1.PredictStreamRequest(model="" if number else "colours", picture=RED)


@pytest.fixture
def frames() -> Iterator[Frames]:
    made = Frames()
    yield made
    made.end()


def begin_upload(connection: Connection, body: bytes = RED) -> None:
    """The first half of a picture, once the server has begun with the request."""
    kind = "Content-Type: image/png"
    connection.head("POST", PREDICT, f"Content-Length: {len(body)}", "Expect: 100-continue", kind)
    assert connection.socket.recv(100).startswith(b"HTTP/1.1 100")
    connection.send(body[:20])


class TestInFlight:
    def test_it_finishes_and_what_comes_later_is_refused(self, colours: Path, frames: Frames, serve: Serve) -> None:
        server = serve(colours)
        with ExitStack() as stack:
            upload, silent, kept = (stack.enter_context(connected(server)) for _ in range(3))
            channel = stack.enter_context(grpc.insecure_channel(server.grpc))
            answers = vision(channel).PredictStream(iter(frames), timeout=BOUND)
            frames.send()
            assert next(answers).WhichOneof("outcome") == "result"
            begin_upload(upload)
            kept.head("GET", "/v1/models")
            assert kept.answer("GET").status == 200
            tell(server)
            server.wait_for(TAKES_NO_MORE)
            for connection in (silent, kept):
                connection.post(PREDICT, RED, "Content-Type: image/png")
                refused = connection.answer()
                assert (refused.status, refused.error["code"]) == (503, "unavailable")
                assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
                assert connection.closed_by_server()
            with pytest.raises(ConnectionRefusedError), connected(server):
                pass
            upload.send(RED[20:])
            finished = upload.answer()
            assert (finished.status, finished.headers["connection"]) == (200, "close")
            frames.send()
            assert next(answers).WhichOneof("outcome") == "result"
            frames.end()
            assert list(answers) == []
        assert server.process.wait(BOUND) == 0

    def test_an_answer_that_its_client_reads_slowly_is_read_to_its_end(self, colours: Path, serve: Serve) -> None:
        server = serve(colours)
        noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
        body = cv2.imencode(".png", noise)[1].tobytes()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.settimeout(BOUND)
            slow.connect(("127.0.0.1", server.port))
            connection = Connection(slow)
            connection.post(PREDICT, body, "Content-Type: image/png", "Accept: image/png")
            began = slow.recv(1)
            tell(server)
            server.wait_for(TAKES_NO_MORE)
            rest = slow.makefile("rb").read()  # until the server hangs up
        head, _, answered = (began + rest).partition(b"\r\n\r\n")
        assert f"content-length: {len(answered)}".encode() in head
        assert len(answered) > 6_000_000
        assert server.process.wait(BOUND) == 0

    def test_kserve_is_refused_in_its_own_words(self, colours: Path, serve: Serve) -> None:
        server = serve(colours)
        with connected(server) as upload, connected(server) as late, connected(server) as probe:
            begin_upload(upload)
            tell(server)
            server.wait_for(TAKES_NO_MORE)
            late.post("/v2/models/colours/infer", b"{}")
            refused = late.answer()
            assert refused.status == 503
            assert b'{"error":"the server is stopping' in refused.body
            probe.head("GET", "/health/live")
            assert probe.answer("GET").status == 200
            upload.send(RED[20:])
            assert upload.answer().status == 200
        assert server.process.wait(BOUND) == 0

    def test_idle_clients_hold_nothing_up(self, colours: Path, serve: Serve) -> None:
        """Who has a connection, or watches the health of the server, does not wait for an answer."""
        server = serve(colours, "--grace-period", LONG)
        with connected(server), connected(server) as kept, grpc.insecure_channel(server.grpc) as channel:
            kept.head("GET", "/v1/models")
            assert kept.answer("GET").status == 200
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=BOUND)
            assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
            assert server.stop() == 0
            assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.RpcError) as ended:
                next(watched)
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE

    def test_what_takes_longer_than_the_grace_period_is_cut_off_and_told(
        self, colours: Path, frames: Frames, serve: Serve
    ) -> None:
        server = serve(colours, "--grace-period", 0.5)
        with connected(server) as upload, connected(server) as head, grpc.insecure_channel(server.grpc) as channel:
            answers = vision(channel).PredictStream(iter(frames), timeout=BOUND)
            frames.send()
            next(answers)
            begin_upload(upload)
            head.send(b"GET /v1/models HTTP/1.1\r\n")
            tell(server)
            cut = upload.answer()
            assert (cut.status, cut.error["code"], cut.headers["connection"]) == (503, "unavailable", "close")
            assert head.closed_by_server()
            with pytest.raises(grpc.RpcError) as ended:
                next(answers)
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.process.wait(BOUND) == 0
        assert "Traceback" not in server.log()


class TestAtOnce:
    @pytest.mark.parametrize(
        ("first", "second"),
        [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)],
    )
    def test_a_second_signal_waits_for_nothing(
        self, first: signal.Signals, second: signal.Signals, tmp_path: Path, serve: Serve
    ) -> None:
        """Neither for the inference of ten minutes, nor for the thread that it runs on."""
        patience = {"timeout_ms": LONG * 1000, "hang_timeout_ms": LONG * 1000}
        model = write_model(tmp_path / "colours", {"latency_ms": LONG * 1000}, batching=patience)
        server = serve(model, "--grace-period", LONG)
        with connected(server) as connection:
            connection.head("POST", PREDICT, f"Content-Length: {len(RED)}", "Expect: 100-continue")
            assert connection.socket.recv(100).startswith(b"HTTP/1.1 100")
            connection.send(RED)
            tell(server, first)
            server.wait_for(TAKES_NO_MORE)
            tell(server, second)
            assert connection.answer().status == 503
        assert server.process.wait(BOUND) == 0
        assert "Traceback" not in server.log()

    def test_a_second_signal_ends_the_delay(self, colours: Path, serve: Serve) -> None:
        server = serve(colours, "--drain-delay", LONG)
        tell(server)
        server.wait_for("told to stop")
        assert server.stop() == 0

    def test_a_model_that_takes_minutes_to_load_is_not_waited_for(self, tmp_path: Path, serve: Serve) -> None:
        quick = write_model(tmp_path / "quick")
        slow = write_model(tmp_path / "slow", {"load_ms": LONG * 1000})
        server = serve(quick, slow, "--drain-delay", LONG, "--grace-period", LONG, ready=False)
        server.wait_for("quick ")
        assert GRPC.search(server.log()) is None
        assert server.stop() == 0
        assert "Traceback" not in server.log()
