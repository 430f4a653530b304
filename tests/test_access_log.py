"""One line for each request in the log, whatever became of it, as people and as programs read it; and JSON for all the rest."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from visionpool.v1 import vision_pb2 as v1
from visionpool_server import logs
from visionpool_server.api.exchange import Exchange, Frame, current, note_error, note_model

from tests.raw_http import connected
from tests.real_server import Server, picture, serving, write_model

BOUND = 20.0  # seconds that anything may take at most
RED, BROKEN, STUCK = (250, 0, 0), (0, 250, 0), (0, 0, 250)
PREDICT, STREAM = "/visionpool.v1.Vision/Predict", "/visionpool.v1.Vision/PredictStream"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+: ")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(
        folder / "colour", {"fail": list(BROKEN), "hang": list(STUCK), "hang_s": 2}, batching={"timeout_ms": 1500}
    )
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with serving(models, "--log-format", "json", "--max-body-mb", "1") as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as made:
        yield made


def records(server: Server) -> list[dict[str, Any]]:
    """Everything that the server has printed so far; each line has to be an object of JSON."""
    return [json.loads(line) for line in server.log().splitlines()]


def line_of(server: Server, name: str) -> dict[str, Any]:
    """The one line about the request of this id."""
    server.wait_for(f'"logger":"visionpool_server.access"[^\n]*"request_id":"{name}"[^\n]*\n', BOUND)
    (line,) = [told for told in records(server) if told["logger"].endswith("access") and told["request_id"] == name]
    return line


def post(server: Server, path: str, name: str, body: bytes = b"", **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", content=body, headers={"X-Request-ID": name}, timeout=BOUND, **more)


def call(channel: Any, method: str, name: str, request: bytes = b"", **more: Any) -> grpc.StatusCode:
    """How a call ends."""
    try:
        channel.unary_unary(method)(request, metadata=(("x-request-id", name),), timeout=more.get("timeout", BOUND))
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def predict(colour: tuple[int, int, int] = RED, model: str = "colour") -> bytes:
    return v1.PredictRequest(model=model, pictures=[picture(colour)]).SerializeToString()


def test_a_line_says_who_asked_what_and_how_it_ended(server: Server) -> None:
    body = picture(RED)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-ID": "told", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    httpx.post(
        f"{server.url}/v1/models/colour/predict?score_threshold=0.5", content=body, headers=headers, timeout=BOUND
    )
    line = line_of(server, "told")
    assert line.pop("duration_ms") > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("peer").startswith("127.0.0.1:")
    assert line == {
        "level": "INFO",
        "logger": "visionpool_server.access",
        "message": "POST /v1/models/colour/predict 200 ok",
        "request_id": "told",
        "transport": "http",
        "method": "POST",
        "path": "/v1/models/colour/predict",
        "status": 200,
        "outcome": "ok",
        "model": "colour",
        "version": "1",
        "trace_id": trace,
        "pictures": 1,
        "received_bytes": len(body),
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "outcome", "model"),
    [
        ("/v1/models/colour/predict", picture(RED), 200, "ok", "colour"),
        ("/v1/models/colour/predict", b"none", 415, "unsupported_media", "colour"),
        ("/v1/models/colour/predict", b"\xff\xd8\xff\xe0 torn", 422, "invalid_image", "colour"),
        ("/v1/models/colour/predict?top_k=x", picture(RED), 422, "invalid_option", "colour"),
        ("/v1/models/colour/predict", b"x" * (2**20 + 1), 413, "too_large", "colour"),
        ("/v1/models/colour/predict", picture(BROKEN), 500, "inference_failed", "colour"),
        ("/v1/models/colour/predict", picture(STUCK), 504, "deadline_exceeded", "colour"),
        ("/v1/models/invented/predict", picture(RED), 404, "model_not_found", None),
        ("/v1/models", b"", 405, "method_not_allowed", None),
        ("/nowhere", b"", 404, "not_found", None),
        ("/fd/colour", b"{}", 400, "invalid_request", "colour"),
        ("/v2/models/colour/infer", b"{", 400, "invalid_request", "colour"),
        ("/v2/models/invented/infer", b"{}", 400, "invalid_request", None),
        ("/v2/models/invented/infer", b'{"inputs":[]}', 404, "model_not_found", None),
        ("/v2/models/colour/versions/9/infer", b'{"inputs":[]}', 404, "model_not_found", None),
        ("/v2/nowhere", b"", 404, "not_found", None),
        ("/v2/cudasharedmemory/region/x/register", b"{}", 501, "unimplemented", None),
    ],
)
def test_each_end_over_http(
    server: Server, path: str, body: bytes, status: int, outcome: str, model: str | None, request: pytest.FixtureRequest
) -> None:
    name = f"http-{abs(hash(request.node.name))}"
    assert post(server, path, name, body).status_code == status
    line = line_of(server, name)
    assert (line["status"], line["outcome"], line.get("model")) == (status, outcome, model)


@pytest.mark.parametrize(
    ("method", "request_bytes", "status", "outcome", "model"),
    [
        (PREDICT, predict(), "OK", "ok", "colour"),
        (PREDICT, b"\xff", "INVALID_ARGUMENT", "invalid_request", None),
        (PREDICT, predict(model="invented"), "NOT_FOUND", "model_not_found", None),
        (PREDICT, predict(BROKEN), "INTERNAL", "inference_failed", "colour"),
        (PREDICT, predict(STUCK), "DEADLINE_EXCEEDED", "deadline_exceeded", "colour"),
        ("/visionpool.v1.Vision/GetModel", v1.GetModelRequest(model="colour").SerializeToString(), "OK", "ok", None),
        ("/visionpool.v1.Vision/Invented", b"", "UNIMPLEMENTED", "method_not_allowed", None),
        ("/inference.GRPCInferenceService/ServerMetadata", b"", "OK", "ok", None),
        (
            "/inference.GRPCInferenceService/ModelInfer",
            pb.ModelInferRequest(model_name="colour").SerializeToString(),
            *("INVALID_ARGUMENT", "invalid_request", "colour"),
        ),
        ("/inference.GRPCInferenceService/ModelInfer", b"", "NOT_FOUND", "model_not_found", None),
        ("/inference.GRPCInferenceService/CudaSharedMemoryRegister", b"", "UNIMPLEMENTED", "unimplemented", None),
        ("/grpc.health.v1.Health/Check", b"\x0a\x04none", "NOT_FOUND", "not_found", None),
    ],
)
def test_each_end_over_grpc(
    server: Server,
    channel: Any,
    method: str,
    request_bytes: bytes,
    status: str,
    outcome: str,
    model: str | None,
    request: pytest.FixtureRequest,
) -> None:
    name = f"grpc-{abs(hash(request.node.name))}"
    assert call(channel, method, name, request_bytes).name == status
    line = line_of(server, name)
    assert (line["call"], line["status"], line["outcome"], line.get("model")) == (method, status, outcome, model)
    assert line["peer"].startswith("127.0.0.1:")
    assert ("pictures" in line) == (model is not None and method == PREDICT)


def test_a_client_that_leaves_is_told_of_too(server: Server, channel: Any) -> None:
    with connected(server) as connection:
        connection.post("/v1/models/colour/predict", picture(STUCK), "X-Request-ID: left-http")
        connection.vanish()
    assert line_of(server, "left-http")["outcome"] == "cancelled"
    with connected(server) as connection:
        connection.head("POST", "/v1/models/colour/predict", "Content-Length: 10", "X-Request-ID: left-halfway")
        connection.vanish()
    assert line_of(server, "left-halfway")["outcome"] == "cancelled"
    assert call(channel, PREDICT, "left-grpc", predict(STUCK), timeout=0.3) is grpc.StatusCode.DEADLINE_EXCEEDED
    line = line_of(server, "left-grpc")
    assert line["outcome"] in ("cancelled", "deadline_exceeded")  # whose clock is the quicker one
    assert line["model"] == "colour"


def test_many_at_once_have_one_line_each_whatever_becomes_of_them(server: Server, channel: Any) -> None:
    """A third of them are cancelled, before the server has them, while they wait, or when they are answered already."""
    calls = []
    for number in range(150):
        body = predict() if number % 2 else b"\xff"
        metadata = (("x-request-id", f"many-{number}"),)
        calls.append(channel.unary_unary(PREDICT).future(body, metadata=metadata, timeout=BOUND))
        if number % 3 == 0:
            calls[number // 2].cancel()
    ended = {f"many-{number}": ended.exception(BOUND) for number, ended in enumerate(calls) if not ended.cancelled()}
    for name in ended:
        server.wait_for(f'"request_id":"{name}"', BOUND)
    channel.unary_unary(PREDICT).future(b"", metadata=(("x-request-id", "after-many"),), timeout=BOUND).exception(BOUND)
    line_of(server, "after-many")
    told = [line for line in records(server) if line.get("request_id", "").startswith("many-")]
    names = [line["request_id"] for line in told]
    assert len(names) == len(set(names))
    assert ended.keys() <= set(names)
    for line in told:
        if error := ended.get(line["request_id"]):
            assert line["status"] == error.code().name


def test_a_connection_that_lingers_is_not_the_requests_time(server: Server) -> None:
    with connected(server) as connection:
        connection.head("POST", "/v1/models/nobody/predict", "X-Request-ID: lingers", "Content-Length: 900000000")
        began = time.monotonic()
        assert connection.closed_by_server()
        assert line_of(server, "lingers")["duration_ms"] < (time.monotonic() - began) * 1e3 / 2


def test_a_message_that_grpc_itself_refuses_is_told_of(server: Server, channel: Any) -> None:
    assert call(channel, PREDICT, "huge", b"x" * 2**21) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert line_of(server, "huge")["outcome"] == "cancelled"


def test_a_stream_is_one_line(server: Server, channel: Any) -> None:
    def frames() -> Iterator[bytes]:
        for colour in (RED, BROKEN, RED):
            yield v1.PredictStreamRequest(model="colour", picture=picture(colour)).SerializeToString()

    answers = list(channel.stream_stream(STREAM)(frames(), metadata=(("x-request-id", "frames"),), timeout=BOUND))
    assert len(answers) == 3
    line = line_of(server, "frames")
    assert {name: line[name] for name in ("call", "outcome", "model", "frames", "failed", "pictures")} == {
        "call": STREAM,
        "outcome": "ok",
        "model": "colour",
        "frames": 3,
        "failed": 1,
        "pictures": 3,
    }


def test_a_stream_of_tensors_is_one_line(server: Server, channel: Any) -> None:
    requests = [pb.ModelInferRequest(model_name=name).SerializeToString() for name in ("colour", "invented")]
    method = channel.stream_stream(INFER_STREAM)
    assert len(list(method(iter(requests), metadata=(("x-request-id", "tensors"),), timeout=BOUND))) == 2
    line = line_of(server, "tensors")
    assert (line["outcome"], line["frames"], line["failed"], line["model"]) == ("ok", 2, 2, "colour")


def test_a_stream_that_is_refused_says_why(server: Server, channel: Any) -> None:
    frame = v1.PredictStreamRequest(model="invented").SerializeToString()
    with pytest.raises(grpc.RpcError):
        list(channel.stream_stream(STREAM)(iter([frame]), metadata=(("x-request-id", "no-stream"),), timeout=BOUND))
    line = line_of(server, "no-stream")
    assert (line["status"], line["outcome"], line.get("frames")) == ("NOT_FOUND", "model_not_found", None)


def test_probes_that_succeed_are_left_out(server: Server, channel: Any) -> None:
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"):
        assert httpx.get(f"{server.url}{path}", headers={"X-Request-ID": "probe"}, timeout=BOUND).status_code == 200
    for method in ("grpc.health.v1.Health/Check", "inference.GRPCInferenceService/ServerReady"):
        assert call(channel, f"/{method}", "probe") is grpc.StatusCode.OK
    post(server, "/nowhere", "after-probes")
    line_of(server, "after-probes")
    assert "probe" not in [told.get("request_id") for told in records(server)]


def test_nobody_switches_off_the_record_of_what_he_asks(server: Server) -> None:
    quiet = {"log_info": False, "log_warning": False, "log_error": False}
    httpx.post(f"{server.url}/v2/logging", json=quiet, timeout=BOUND).raise_for_status()
    post(server, "/nowhere", "in-the-dark")
    assert line_of(server, "in-the-dark")["status"] == 404
    loud = dict.fromkeys(quiet, True)
    httpx.post(f"{server.url}/v2/logging", json=loud, timeout=BOUND).raise_for_status()


def test_nothing_but_json_is_printed_from_start_to_end(models: Path) -> None:
    with serving(models, "--log-format", "json", "--log-level", "error") as quiet:
        post(quiet, "/nowhere", "one")
    told = records(quiet)
    assert [line["logger"] for line in told][:2] == ["visionpool_server.start"] * 2
    assert (told[0]["model"], told[0]["task"], told[0]["placements"][0]["backend"]) == (
        "colour",
        "classification",
        "fake",
    )
    assert (told[1]["url"], told[1]["grpc"]) == (quiet.url, quiet.grpc)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in told)
    assert [line["request_id"] for line in told if "request_id" in line] == ["one"]


def test_a_start_that_fails_is_told_in_json_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "visionpool", "serve", str(tmp_path / "none"), "--log-format", "json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (line["level"], line["code"]) == ("CRITICAL", "invalid_model")
    assert "none" in line["message"]


def test_a_line_of_text_is_forged_by_nobody(models: Path) -> None:
    forged = "2026-01-01 00:00:00,000 INFO visionpool_server.access: GET / 200 ok"
    with serving(models, "--access-log") as server, connected(server) as connection:
        for path in (f"/a%0A{forged.replace(' ', '%20')}", "/b%1b[2J%e2%80%a8c", f"/{'x' * 4000}"):
            connection.head("GET", path, f"X-Request-ID: {forged}", "Connection: keep-alive")
            connection.answer("GET")
        connection.head("GET", "/last", "X-Request-ID: last")
        connection.answer("GET")
        server.wait_for(r"GET /last 404 not_found .*\[last\]\n", BOUND)
    lines = [line for line in server.log().splitlines() if "visionpool_server.access" in line]
    assert len(lines) == 4
    for line in lines:
        assert TEXT_LINE.match(line) and line.isprintable() and len(line) < 1000
        assert "INFO visionpool_server.access: GET / 200" not in line.partition(": ")[2]


def test_text_has_no_access_log_unless_it_is_asked_for(models: Path) -> None:
    with serving(models) as server:
        post(server, "/nowhere", "unseen")
    assert "access" not in server.log()


def command_of(models: Path) -> list[str]:
    ports = ("--http-port", "0", "--grpc-port", "0")
    return [sys.executable, "-m", "visionpool", "serve", str(models), "--log-format", "json", *ports]


def test_a_log_that_nobody_reads_holds_up_no_request(models: Path) -> None:
    with subprocess.Popen(command_of(models), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            url = next(told["url"] for told in map(json.loads, process.stderr) if "url" in told)
            with httpx.Client(base_url=url, timeout=BOUND) as client:
                for number in range(400):  # a pipe holds 64 KiB
                    assert client.get("/nowhere" * 40, headers={"X-Request-ID": f"n{number}"}).status_code == 404
        finally:
            process.terminate()
        names = [told.get("request_id") for told in map(json.loads, process.stderr)]
        assert process.wait(BOUND) == 0
    assert [name for name in names if name] == [f"n{number}" for number in range(400)]


def test_a_log_that_nobody_reads_holds_up_no_end(models: Path) -> None:
    with subprocess.Popen(command_of(models), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            url = next(told["url"] for told in map(json.loads, process.stderr) if "url" in told)
            with httpx.Client(base_url=url, timeout=BOUND) as client:
                for _ in range(600):
                    client.get("/nowhere" * 40)
                process.terminate()
                process.terminate()  # at once, whatever hangs; and the end has something to say
                assert process.wait(BOUND) == 0
        finally:
            process.kill()


class Stuck(io.StringIO):
    """A stream that takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.going_on = threading.Event()

    def write(self, text: str) -> int:
        assert self.going_on.wait(BOUND)
        return super().write(text)


def test_lines_past_what_may_wait_are_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionpool_server.logs._WAITING", 100)
    stream = Stuck()
    writer = logs._Writer(stream, logs._Text())
    for number in range(1000):
        writer.put(f"line {number}")
    stream.going_on.set()
    writer.put("the last")
    writer.close()
    said = stream.getvalue().splitlines()
    lost = [int(found[1]) for line in said if (found := re.search(r"(\d+) lines of the log were lost", line))]
    written = [line for line in said if line.startswith(("line", "the last"))]
    assert sum(lost) + len(written) == 1001
    assert sum(lost) >= 800
    assert written == sorted(written, key=lambda line: int(line[5:]) if line.startswith("line") else 1001)


def test_lines_that_come_while_it_closes_are_written_if_they_can_be_and_hold_nobody_up() -> None:
    stream = Stuck()
    writer = logs._Writer(stream, logs._Text())
    writer.put("before")
    closing = threading.Thread(target=writer.close)
    closing.start()
    assert writer._closing.wait(BOUND)
    caller = threading.Thread(target=writer.put, args=("meanwhile",), daemon=True)
    caller.start()
    caller.join(BOUND)
    assert not caller.is_alive()
    stream.going_on.set()
    closing.join(BOUND)
    writer.put("after")
    assert stream.getvalue().splitlines() == ["before", "meanwhile", "after"]


@pytest.fixture
def log() -> Iterator[Callable[[logging.Formatter], tuple[logging.Logger, io.StringIO]]]:
    """A logger of its own which writes by a formatter, and what it writes."""
    made: list[logging.Handler] = []
    logger = logging.Logger("tests.of.logs")

    def start(form: logging.Formatter) -> tuple[logging.Logger, io.StringIO]:
        handler = logging.StreamHandler(io.StringIO())
        handler.setFormatter(form)
        logger.addHandler(handler)
        made.append(handler)
        return logger, handler.stream

    yield start
    for handler in made:
        handler.close()


Start = Callable[[logging.Formatter], tuple[logging.Logger, io.StringIO]]


@given(text=st.text() | st.text(alphabet=st.characters(categories=["Cs", "Cc", "Zl", "Zp", "Cf"])))
def test_any_text_is_one_line(text: str) -> None:
    for form in (logs._Text(), logs._Json()):
        record = logging.LogRecord("tests", logging.ERROR, "", 0, "%s", (text,), None)
        line = form.format(record)
        assert len(line.splitlines()) == 1
        line.encode()
        if isinstance(form, logs._Json):
            written = json.loads(line)["message"]
            assert written == text or any("\ud800" <= c <= "\udfff" for c in text)


def test_an_error_is_one_object_with_its_traceback_and_its_request(log: Start) -> None:
    logger, stream = log(logs._Json())
    token = current.set(Exchange("r-1", "http", "GET /"))
    try:
        raise ValueError("first\n2026-01-01 00:00:00,000 INFO forged: second")
    except ValueError:
        logger.exception("it failed")
    finally:
        current.reset(token)
    told = json.loads(stream.getvalue())
    assert (told["message"], told["request_id"], told["level"]) == ("it failed", "r-1", "ERROR")
    assert "Traceback" in told["exc_info"] and "ValueError: first" in told["exc_info"]


def test_what_an_error_quotes_looks_like_no_line_of_text(log: Start) -> None:
    logger, stream = log(logs._Text())
    try:
        raise ValueError("first\n2026-01-01 00:00:00,000 INFO forged: second")
    except ValueError:
        logger.exception("it failed")
    first, *rest = stream.getvalue().splitlines()
    assert TEXT_LINE.match(first)
    assert any("forged" in line for line in rest)
    assert all(line.startswith("  ") for line in rest)


SCRIPT = """
import sys, threading, warnings
from visionpool_server.logs import set_up
set_up("info", "json")
warnings.warn("be warned\\nof this")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
class Bad:
    def __del__(self):
        raise OSError("in vain")
Bad()
raise RuntimeError("the end")
"""


def test_what_python_prints_by_itself_is_json_too() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    told = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["level"] for line in told] == ["WARNING", "CRITICAL", "ERROR", "CRITICAL"]
    assert "be warned" in told[0]["message"]
    assert [line["exc_info"].splitlines()[-1] for line in told[1:]] == [
        "ZeroDivisionError: division by zero",
        "OSError: in vain",
        "RuntimeError: the end",
    ]


def test_an_observer_is_told_once_and_its_failure_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Exchange] = []

    def failing(_: Exchange) -> None:
        raise ValueError("no room")

    exchange = Exchange("a", "http", "GET /", (failing, told.append))
    time.sleep(0.001)
    exchange.end()
    exchange.end()
    assert told == [exchange]
    assert (exchange.outcome, exchange.counts) == ("cancelled", True)
    assert exchange.seconds > 0
    assert "no room" in caplog.text


@pytest.mark.parametrize(("end", "counts"), [("ok", 3), ("cancelled", 3), ("model_not_found", 4)])
def test_frames_are_requests_of_their_own_and_their_stream_only_where_it_fails(end: str, counts: int) -> None:
    told: list[Exchange] = []
    stream = Exchange("s", "grpc", STREAM, (told.append,))
    stream.kind = "stream"
    token = current.set(stream)
    for outcome in ("ok", "inference_failed"):
        with Frame():
            note_model("colour", "1")
            if outcome != "ok":
                note_error(outcome)
    with pytest.raises(KeyError), Frame():
        raise KeyError
    current.reset(token)
    stream.outcome = end
    stream.end()
    assert [one.outcome for one in told] == ["ok", "inference_failed", "cancelled", end]
    assert [one.kind for one in told] == ["frame", "frame", "frame", "stream"]
    assert sum(one.counts for one in told) == counts
    assert (stream.frames, stream.failed, stream.model) == (3, 2, "colour")
