"""The id of a request: the caller's own where it is harmless, else one of ours, in every answer of both transports."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from visionpool.v1 import vision_pb2 as v1
from visionpool_server.api.request_id import request_id, trace_id

from tests.raw_http import connected
from tests.real_server import Server, picture, serving, write_model

BOUND = 20.0  # seconds that anything may take at most
OURS = re.compile(r"[0-9a-f]{32}")
SAFE = string.ascii_letters + string.digits + "._~:/+=@,-"
PREDICT = "/visionpool.v1.Vision/Predict"
STREAM = "/visionpool.v1.Vision/PredictStream"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(write_model(tmp_path_factory.mktemp("models") / "colour")) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as made:
        yield made


@given(st.text(alphabet=SAFE, min_size=1, max_size=128))
def test_a_harmless_id_is_kept(name: str) -> None:
    assert request_id(name) == name


@given(st.text().filter(lambda text: not (0 < len(text) <= 128 and set(text) <= set(SAFE))) | st.none())
def test_any_other_is_replaced(name: str | None) -> None:
    assert OURS.fullmatch(request_id(name))


@pytest.mark.parametrize("name", ["a" * 129, "a\n", "a b", "ä", 'a"', "a;b", "a\x00", ""])
def test_what_could_end_a_line_or_a_header_is_replaced(name: str) -> None:
    assert OURS.fullmatch(request_id(name))


def test_ids_of_ours_are_different_ones() -> None:
    assert len({request_id() for _ in range(10_000)}) == 10_000


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "parent",
    [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00", f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-will-be"],
)
def test_a_valid_trace_is_known(parent: str) -> None:
    assert trace_id(parent) == TRACE


@pytest.mark.parametrize(
    "parent",
    [
        "",
        TRACE,
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE[1:]}-{SPAN}-01",
    ],
)
def test_any_other_trace_is_not(parent: str) -> None:
    assert trace_id(parent) == ""


@given(st.text())
def test_no_text_breaks_the_reading_of_traces(parent: str) -> None:
    assert trace_id(parent) == ""


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health/live"),
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/v1/models"),
        ("HEAD", "/v1/models"),
        ("GET", "/v1/models/none"),
        ("DELETE", "/v1/models"),
        ("POST", "/v1/models/colour/predict"),
        ("POST", "/v2/models/colour/infer"),
        ("GET", "/v2/models/colour"),
        ("GET", "/v2/nowhere"),
        ("GET", "/nowhere"),
        ("GET", "/metrics"),
    ],
)
def test_every_answer_over_http_has_the_id(server: Server, method: str, path: str) -> None:
    answer = httpx.request(method, f"{server.url}{path}", headers={"X-Request-ID": "mine/1"}, timeout=BOUND)
    assert answer.headers.get_list("x-request-id") == ["mine/1"]
    answer = httpx.request(method, f"{server.url}{path}", timeout=BOUND)
    assert OURS.fullmatch(answer.headers["x-request-id"])


@settings(deadline=None, max_examples=60)
@example(b"+ ")
@example(b" \t+\t")
@given(st.binary(min_size=1, max_size=200).filter(lambda value: not set(value) & set(b"\r\n\0")))
def test_no_header_breaks_an_answer(server: Server, value: bytes) -> None:
    with connected(server) as connection:
        connection.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Request-ID: " + value + b"\r\n\r\n")
        answer = connection.answer("GET")
    if answer.status == 400:  # the server below takes no such header, and so nobody sees the request
        assert any(byte < 32 or byte > 126 for byte in value)
        return
    assert answer.status == 200
    told = answer.headers["x-request-id"]
    given_one = value.decode("latin-1").strip(" \t")
    assert (
        told == given_one
        if given_one and set(given_one) <= set(SAFE) and len(given_one) <= 128
        else OURS.fullmatch(told)
    )


def test_two_requests_on_one_connection_have_an_id_each(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=BOUND) as client:
        names = [client.get("/v1/models").headers["x-request-id"] for _ in range(20)]
    assert len(set(names)) == 20


@pytest.mark.parametrize(
    ("method", "request_bytes"),
    [
        (PREDICT, v1.PredictRequest(model="colour", pictures=[picture((1, 2, 3))]).SerializeToString()),
        (PREDICT, b"\xff"),
        (PREDICT, v1.PredictRequest(model="none").SerializeToString()),
        ("/visionpool.v1.Vision/Invented", b""),
        ("/inference.GRPCInferenceService/ServerLive", b""),
        ("/inference.GRPCInferenceService/ModelInfer", b""),
        ("/grpc.health.v1.Health/Check", b""),
        ("/grpc.health.v1.Health/Check", b"\x0a\x04none"),
    ],
)
@pytest.mark.parametrize("name", ["mine/2", "not mine"])
def test_every_answer_over_grpc_has_the_id(channel: Any, method: str, request_bytes: bytes, name: str) -> None:
    call = channel.unary_unary(method).future(request_bytes, metadata=(("x-request-id", name),), timeout=BOUND)
    call.exception(BOUND)
    (told,) = [value for key, value in call.trailing_metadata() if key == "x-request-id"]
    assert told == name if name == "mine/2" else OURS.fullmatch(told)


def test_a_stream_has_the_id_at_its_end(channel: Any) -> None:
    frame = v1.PredictStreamRequest(model="colour", picture=picture((1, 2, 3))).SerializeToString()
    call = channel.stream_stream(STREAM)(iter([frame, frame]), metadata=(("x-request-id", "frames"),), timeout=BOUND)
    assert len(list(call)) == 2
    assert ("x-request-id", "frames") in list(call.trailing_metadata())
