"""Every status that a caller can meet, provoked over a socket: one form of error, and what to do about it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import Serve
from tests.raw_http import Answer, Connection, connected, error_of
from tests.real_server import Server, picture, scores, shares, write_model

RED = (200, 20, 30)
BOUND = 30.0
PREDICT = "/v1/models/colours/predict"
NARROW = "/v1/models/narrow/predict"
MEGABYTE = 2**20


@pytest.fixture
def connection(strict_server: Server) -> Iterator[Connection]:
    with connected(strict_server) as made:
        yield made


def ask(connection: Connection, method: str, path: str, body: bytes = b"", *headers: str) -> Answer:
    connection.head(method, path, f"Content-Length: {len(body)}", *headers)
    connection.send(body)
    return connection.answer(method)


def eventually(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < until, f"not within {BOUND:g} s: {what}"
        time.sleep(0.02)


def still_answers(server: Server) -> None:
    response = httpx.post(server.url + PREDICT, content=picture(RED), timeout=BOUND)
    assert scores(response.json()) == pytest.approx(shares(RED), abs=0.01)


class TestStatuses:
    def test_400_for_what_cannot_be_understood(self, connection: Connection) -> None:
        answer = ask(connection, "POST", PREDICT, b"{", "Content-Type: application/json")
        assert (answer.status, answer.error["code"]) == (400, "invalid_request")

    @pytest.mark.parametrize("path", ["/nothing", "/v1/models/", "/v1/models/colours/predict/", "/fd", "//"])
    def test_404_for_what_is_not_there(self, connection: Connection, path: str) -> None:
        answer = ask(connection, "POST", path, picture(RED))
        assert (answer.status, answer.error["code"]) == (404, "not_found")
        assert "/docs" in answer.error["hint"]

    @pytest.mark.parametrize("name", ["nobody", "a%2Fb", "%F0%9F%8D%8E", "..%2f..", "colours%00"])
    def test_404_for_a_model_that_is_not_there(self, connection: Connection, name: str) -> None:
        answer = ask(connection, "POST", f"/v1/models/{name}/predict", picture(RED))
        assert (answer.status, answer.error["code"]) in [(404, "model_not_found"), (404, "not_found")]

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", PREDICT, "POST"),
            ("PUT", PREDICT, "POST"),
            ("HEAD", PREDICT, "POST"),
            ("DELETE", "/v1/models/colours", "GET"),
            ("POST", "/health/ready", "GET"),
            ("GET", "/fd/colours", "POST"),
        ],
    )
    def test_405_for_another_method_and_the_right_one(
        self, connection: Connection, method: str, path: str, allowed: str
    ) -> None:
        answer = ask(connection, method, path)
        assert answer.status == 405
        assert allowed in answer.headers["allow"]
        if method != "HEAD":
            assert answer.error["code"] == "method_not_allowed"
            assert allowed in answer.error["hint"]

    def test_408_for_a_body_that_does_not_come(self, connection: Connection) -> None:
        connection.head("POST", PREDICT, "Content-Length: 1000", "Content-Type: image/png")
        connection.send(b"only this")
        answer = connection.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")

    def test_413_for_a_body_over_the_limit_before_it_is_sent(self, connection: Connection) -> None:
        connection.head("POST", PREDICT, f"Content-Length: {MEGABYTE + 1}", "Content-Type: image/png")
        answer = connection.answer()
        assert (answer.status, answer.error["code"]) == (413, "too_large")
        assert "1 MiB" in answer.error["message"]
        assert "--max-body-mb" in answer.error["hint"]

    def test_413_for_a_body_over_the_limit_that_does_not_say_its_length(self, connection: Connection) -> None:
        connection.head("POST", PREDICT, "Transfer-Encoding: chunked", "Content-Type: image/png")
        for _ in range(9):
            connection.send(b"20000\r\n" + bytes(0x20000) + b"\r\n")
        answer = connection.answer()
        assert (answer.status, answer.error["code"]) == (413, "too_large")

    def test_a_body_of_just_the_limit_is_read(self, connection: Connection) -> None:
        body = picture(RED).ljust(MEGABYTE, b"\0")
        answer = ask(connection, "POST", PREDICT, body, "Content-Type: image/png")
        assert answer.status == 200

    def test_413_for_a_picture_of_too_many_pixels(self, connection: Connection) -> None:
        answer = ask(connection, "POST", PREDICT, picture(RED, (2000, 501)), "Content-Type: image/png")
        assert (answer.status, answer.error["code"]) == (413, "too_large")
        assert "2000x501" in answer.error["message"]

    def test_415_for_what_is_no_picture(self, connection: Connection) -> None:
        answer = ask(connection, "POST", PREDICT, b"hello", "Content-Type: text/plain")
        assert (answer.status, answer.error["code"]) == (415, "unsupported_media")
        assert "text/plain" in answer.error["message"]

    def test_422_for_a_corrupt_picture(self, connection: Connection) -> None:
        answer = ask(connection, "POST", PREDICT, picture(RED)[:50], "Content-Type: image/png")
        assert (answer.status, answer.error["code"]) == (422, "invalid_image")

    def test_422_for_a_wrong_option(self, connection: Connection) -> None:
        answer = ask(connection, "POST", PREDICT + "?top_k=many", picture(RED), "Content-Type: image/png")
        assert (answer.status, answer.error["code"]) == (422, "invalid_option")

    def test_429_with_a_time_to_come_back_when_the_queue_is_full(self, strict_server: Server) -> None:
        with ThreadPoolExecutor(8) as threads:
            futures = [threads.submit(post, strict_server, NARROW) for _ in range(8)]
            responses = [future.result(BOUND) for future in futures]
        statuses = sorted(response.status_code for response in responses)
        assert set(statuses) == {200, 429}
        for response in responses:
            if response.status_code == 429:
                error = error_of(response.content, response.headers["content-type"])
                assert error["code"] == "queue_full"
                assert "Retry-After" in error["hint"]
                assert 1 <= int(response.headers["retry-after"]) <= 60

    def test_500_without_a_word_of_what_the_runtime_said(self, connection: Connection) -> None:
        answer = ask(connection, "POST", "/v1/models/failing/predict", picture((250, 0, 0)), "Content-Type: image/png")
        assert (answer.status, answer.error["code"]) == (500, "inference_failed")
        assert b"told to fail" not in answer.body
        good = ask(connection, "POST", "/v1/models/failing/predict", picture(RED), "Content-Type: image/png")
        assert good.status == 200

    def test_504_when_the_model_takes_longer_than_its_limit(self, connection: Connection) -> None:
        answer = ask(connection, "POST", "/v1/models/late/predict", picture(RED), "Content-Type: image/png")
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")

    def test_504_when_the_caller_allows_less(self, connection: Connection) -> None:
        answer = ask(connection, "POST", NARROW + "?timeout_ms=50", picture(RED), "Content-Type: image/png")
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
        assert "0.05 s" in answer.error["message"]


def post(server: Server, path: str) -> httpx.Response:
    return httpx.post(server.url + path, content=picture(RED), timeout=BOUND)


class TestLoading:
    def test_503_until_the_models_are_loaded(self, serve: Serve, tmp_path: Path) -> None:
        write_model(tmp_path / "models" / "quick")
        write_model(tmp_path / "models" / "slow", {"load_ms": 4000})
        server = serve(tmp_path / "models", ready=False)
        server.wait_for("quick ")
        (listener,) = psutil.Process(server.process.pid).net_connections("tcp4")
        server.url = f"http://127.0.0.1:{listener.laddr.port}"
        with httpx.Client(base_url=server.url, timeout=BOUND) as client:
            assert client.get("/health/live").status_code == 200
            for response in (client.get("/health/ready"), client.post("/v1/models/slow/predict", content=picture(RED))):
                error = error_of(response.content, response.headers["content-type"])
                assert (response.status_code, error["code"]) == (503, "unavailable")
                assert response.headers["retry-after"] == "1"
            assert client.post("/v1/models/quick/predict", content=picture(RED)).status_code == 200
            server.wait_until_ready()
            assert client.get("/health/ready").status_code == 200
            assert client.post("/v1/models/slow/predict", content=picture(RED)).status_code == 200
            assert client.post("/v1/models/nobody/predict", content=picture(RED)).status_code == 404

    def test_stopping_lets_what_is_in_flight_finish(self, serve: Serve, tmp_path: Path) -> None:
        server = serve(write_model(tmp_path / "slow", {"latency_ms": 1500}))
        with ThreadPoolExecutor(1) as thread, connected(server) as connection:
            body = picture(RED)
            connection.head("POST", "/v1/models/slow/predict", f"Content-Length: {len(body)}", "Expect: 100-continue")
            assert connection.socket.recv(100).startswith(b"HTTP/1.1 100")  # the server has begun with it
            connection.send(body)
            stopped = thread.submit(server.stop, signal.SIGTERM)
            answer = connection.answer()
            assert answer.status == 200
            assert stopped.result(BOUND) == 0


class TestConnections:
    def test_a_connection_goes_on_after_an_error(self, connection: Connection) -> None:
        kind = "Content-Type: image/png"
        for path, body, status in [
            (PREDICT, picture(RED)[:50], 422),
            ("/nothing", picture(RED), 404),
            ("/v1/models/nobody/predict", picture(RED), 404),
            (PREDICT + "?top_k=0", picture(RED), 422),
            ("/v1/models/late/predict", picture(RED), 504),
            (PREDICT, b"hello", 415),
            (PREDICT, picture(RED), 200),
        ]:
            answer = ask(connection, "POST", path, body, kind)
            assert (answer.status, "connection" in answer.headers) == (status, False)

    def test_requests_sent_ahead_are_answered_in_order(self, connection: Connection) -> None:
        with ExitStack() as stack:
            other = stack.enter_context(connection.socket.dup())
            for top_k in (1, 2, 3):
                connection.post(f"{PREDICT}?top_k={top_k}", picture(RED), "Content-Type: image/png")
            received = b""
            while received.count(b"timings_ms") < 3:
                chunk = other.recv(65536)
                assert chunk
                received += chunk
        assert [received.split(b'"results"')[i].count(b'"red"') for i in (1, 2, 3)] == [1, 1, 1]
        assert [part.partition(b"]")[0].count(b",") for part in received.split(b'"label_ids":[')[1:]] == [0, 1, 2]

    def test_a_client_that_expects_100_continue_gets_it_before_it_sends(self, connection: Connection) -> None:
        body = picture(RED)
        headers = (f"Content-Length: {len(body)}", "Content-Type: image/png", "Expect: 100-continue")
        connection.head("POST", PREDICT, *headers)
        assert connection.socket.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n")
        connection.send(body)
        assert connection.answer().status == 200

    @pytest.mark.parametrize(
        ("path", "length", "status"), [(PREDICT, 5 * MEGABYTE, 413), ("/v1/models/nobody/predict", 1000, 404)]
    )
    def test_a_client_that_expects_100_continue_is_refused_without_it(
        self, connection: Connection, path: str, length: int, status: int
    ) -> None:
        connection.head("POST", path, f"Content-Length: {length}", "Expect: 100-continue")
        started = connection.socket.recv(12)
        assert started == b"HTTP/1.1 " + str(status).encode()
        assert connection.closed_by_server()

    def test_a_chunked_upload_is_read(self, connection: Connection) -> None:
        body = picture(RED, (100, 100), ".bmp")
        connection.head("POST", PREDICT, "Transfer-Encoding: chunked", "Content-Type: image/bmp")
        for start in range(0, len(body), 1000):
            part = body[start : start + 1000]
            connection.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        connection.send(b"0\r\n\r\n")
        assert connection.answer().status == 200

    def test_a_body_in_small_pieces_is_read(self, connection: Connection) -> None:
        body = picture(RED)
        connection.head("POST", PREDICT, f"Content-Length: {len(body)}", "Content-Type: image/png")
        for start in range(0, len(body), 16):
            connection.send(body[start : start + 16])
            time.sleep(0.005)
        assert connection.answer().status == 200

    def test_http_1_0_is_answered_and_hung_up(self, connection: Connection) -> None:
        connection.send(b"GET /health/live HTTP/1.0\r\n\r\n")
        assert connection.answer("GET").status == 200
        assert connection.closed_by_server()

    def test_what_is_not_http_is_refused_and_hung_up(self, connection: Connection) -> None:
        connection.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS\r\n\r\n")
        assert connection.closed_by_server()


class TestSlowAndGone:
    """Clients that dribble, or leave, hold nothing: no place, no connection, no thread."""

    @pytest.mark.parametrize("length", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
    def test_a_dribbling_client_gets_408_and_is_hung_up_though_it_dribbles_on(
        self, connection: Connection, length: str
    ) -> None:
        connection.head("POST", PREDICT, length, "Content-Type: image/png")
        gone = threading.Event()

        def dribble() -> None:
            while not gone.wait(0.02):
                try:
                    connection.send(b"1\r\nx\r\n")
                except OSError:
                    return

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            answer = connection.answer()
            assert (answer.status, answer.error["code"]) == (408, "request_timeout")
            assert connection.closed_by_server()
        finally:
            gone.set()
            thread.join(BOUND)

    def test_a_client_that_sends_more_than_the_limit_reads_why_before_it_is_hung_up(
        self, connection: Connection
    ) -> None:
        connection.head("POST", PREDICT, f"Content-Length: {8 * MEGABYTE}", "Content-Type: image/png")
        for _ in range(8):  # it sends all before it reads: the answer must not be lost on the way
            connection.send(bytes(MEGABYTE))
        answer = connection.answer()
        assert (answer.status, answer.error["code"]) == (413, "too_large")
        assert connection.closed_by_server()

    def test_a_head_without_end_is_not_kept(self, strict_server: Server) -> None:
        with connected(strict_server) as connection:
            connection.send(b"GET /health/live HTTP/1.1\r\n")
            with pytest.raises(ConnectionError):
                for _ in range(64):
                    connection.send(b"x: " + b"y" * MEGABYTE + b"\r\n")
        still_answers(strict_server)

    def test_a_long_head_in_pieces_is_read_each_time(self, connection: Connection) -> None:
        for _ in range(3):
            for piece in (b"GET /health/live HTTP/1.1\r\nHost: x\r\n", *[b"x: " + b"y" * 4000 + b"\r\n"] * 15, b"\r\n"):
                connection.send(piece)
            assert connection.answer("GET").status == 200

    def test_clients_that_never_get_to_the_point_are_hung_up(self, strict_server: Server) -> None:
        """Side by side: one says nothing, one begins a request and stops, one dribbles, one does so after a request."""
        gone = threading.Event()

        def dribble(connection: Connection) -> None:
            while not gone.wait(0.2):
                try:
                    connection.send(b"X-Drop: 1\r\n")
                except OSError:
                    return

        with ExitStack() as stack:
            connections = [stack.enter_context(connected(strict_server)) for _ in range(4)]
            connections[1].send(b"POST /v1/mod")
            connections[2].send(b"GET / HTTP/1.1\r\n")
            assert ask(connections[3], "GET", "/health/live").status == 200
            connections[3].send(b"GET / HTTP/1.1\r\n")
            threads = [threading.Thread(target=dribble, args=(connection,)) for connection in connections[2:]]
            for thread in threads:
                thread.start()
            try:
                assert all(connection.closed_by_server() for connection in connections)
            finally:
                gone.set()
                for thread in threads:
                    thread.join(BOUND)
        still_answers(strict_server)

    def test_a_client_that_leaves_in_the_middle_of_its_body_disturbs_nobody(self, strict_server: Server) -> None:
        before = len(strict_server.log())
        for _ in range(20):
            with connected(strict_server) as connection:
                connection.head("POST", PREDICT, "Content-Length: 1000", "Content-Type: image/png")
                connection.send(b"\x89PNG")
        still_answers(strict_server)
        assert strict_server.log()[before:] == ""

    def test_a_client_that_leaves_frees_its_place(self, serve: Serve, tmp_path: Path) -> None:
        one_place = {"workers": 1, "batching": {"max_batch_size": 1, "max_queue_size": 1, "timeout_ms": 60_000}}
        server = serve(write_model(tmp_path / "stuck", {"hang": [250, 0, 0], "hang_s": 6}, **one_place))
        path, kind = "/v1/models/stuck/predict", "Content-Type: image/png"

        def status() -> int:
            return post(server, path + "?timeout_ms=20").status_code

        with ExitStack() as stack:
            for _ in range(2):  # one runs, one waits
                holding = stack.enter_context(connected(server))
                holding.post(path, picture((250, 0, 0)), kind)
            eventually(lambda: status() == 429, "both places are taken")
        # Both are gone, though the worker is still stuck: there is room in the queue, and the wait is too long.
        eventually(lambda: status() == 504, "a place is free again")
        eventually(lambda: post(server, path).status_code == 200, "the worker is back")

    def test_many_clients_that_leave_early_cost_no_inference(self, serve: Serve, tmp_path: Path) -> None:
        slow = {"workers": 1, "batching": {"max_batch_size": 1, "max_queue_size": 64}}
        server = serve(write_model(tmp_path / "slow", {"latency_ms": 250}, **slow))
        path, kind = "/v1/models/slow/predict", "Content-Type: image/png"
        with ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(connected(server)).post(path, picture(RED), kind)
            time.sleep(0.3)  # some are queued by now, some are being decoded
        response = post(server, path)  # 40 pictures ahead would take it 10 s
        assert response.status_code == 200
        queued_ms = response.json()["timings_ms"]["queue"]
        assert queued_ms < 5000
