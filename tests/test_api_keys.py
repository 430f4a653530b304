"""API keys: who shows one is let in by both transports, who shows none learns nothing; and files that change."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_reflection.v1alpha import reflection_pb2 as reflected
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from visionpool import errors
from visionpool.grpc_transport import refusal as refusal_of
from visionpool.v1 import vision_pb2 as v1
from visionpool_server.api.api_keys import ApiKeys, read_keys

from tests.raw_http import connected
from tests.real_server import Server, picture, serving, write_model

BOUND = 20.0  # seconds that anything may take at most
ALICE, NAMELESS, OLD = "sesame-0123456789abcdef", "open:no-this-has-a-name", "old-key"
FILE = f"# who may call\n\n  alice:{ALICE}  \r\n{NAMELESS}\nbare-key\n"
VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
Headers = dict[str, str]
GOOD: Sequence[Headers] = (
    {"Authorization": f"Bearer {ALICE}"},
    {"authorization": f"bEARER   {ALICE}"},
    {"X-API-Key": ALICE},
    {"X-API-Key": "bare-key"},
    {"X-API-Key": "no-this-has-a-name"},
    {"Authorization": "Basic eDp5", "X-API-Key": ALICE},
)
BAD: Sequence[Headers] = (
    {},
    {"Authorization": ALICE},
    {"Authorization": f"Basic {ALICE}"},
    {"Authorization": "Bearer"},
    {"Authorization": f"Bearer {ALICE}x"},
    {"Authorization": f"Bearer {ALICE[:-1]}"},
    {"X-API-Key": f"alice:{ALICE}"},
    {"X-API-Key": NAMELESS},
    {"X-API-Key": "# who may call"},
    {"X-API-Key": ALICE.upper()},
)
OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
CLOSED = (
    "/",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/v1/models",
    "/v2",
    "/v2/models/colour/ready",
    "/v2/x",
    "/health/x",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "colour")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text(FILE)
    with serving(model, "--access-log", "--api-keys", keys) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as made:
        yield made


def status(server: Server, path: str = "/v1/models", headers: Headers | None = None) -> int:
    return httpx.get(f"{server.url}{path}", headers=headers or {}, timeout=BOUND).status_code


def code(channel: Any, method: str, headers: Headers | None = None, request: bytes = b"") -> grpc.StatusCode:
    metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
    call = channel.unary_unary(method).future(request, metadata=metadata, timeout=BOUND)
    call.exception(BOUND)
    ended: grpc.StatusCode = call.code()
    return ended


@pytest.mark.parametrize("headers", GOOD, ids=str)
def test_who_shows_a_key_is_let_in(server: Server, channel: Any, headers: Headers) -> None:
    assert status(server, headers=headers) == 200
    assert code(channel, "/visionpool.v1.Vision/ListModels", headers) is grpc.StatusCode.OK
    assert code(channel, "/inference.GRPCInferenceService/ServerMetadata", headers) is grpc.StatusCode.OK


@pytest.mark.parametrize("headers", BAD, ids=str)
def test_who_shows_none_or_another_is_refused(server: Server, channel: Any, headers: Headers) -> None:
    answer = httpx.get(f"{server.url}/v1/models", headers=headers, timeout=BOUND)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthenticated"
    assert code(channel, "/visionpool.v1.Vision/ListModels", headers) is grpc.StatusCode.UNAUTHENTICATED


@settings(deadline=None, max_examples=40)
@given(st.binary(min_size=1, max_size=300).filter(lambda value: not set(value) & set(b"\r\n\0")))
def test_no_header_gets_in_by_luck(server: Server, value: bytes) -> None:
    with connected(server) as connection:
        connection.send(
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: " + value + b"\r\nX-API-Key: " + value + b"\r\n\r\n"
        )
        assert connection.answer("GET").status in (400, 401)


@pytest.mark.parametrize("path", OPEN)
def test_health_checks_need_no_key(server: Server, path: str) -> None:
    assert status(server, path) == 200


@pytest.mark.parametrize("path", CLOSED)
def test_everything_else_does(server: Server, path: str) -> None:
    assert status(server, path) == 401
    assert status(server, path, GOOD[0]) != 401


def test_kserve_is_told_in_its_own_form(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v2/models/colour/infer", content=b"{}", timeout=BOUND)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert list(answer.json()) == ["error"]
    assert "API key" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "free"),
    [
        ("grpc.health.v1.Health/Check", True),
        ("inference.GRPCInferenceService/ServerLive", True),
        ("inference.GRPCInferenceService/ServerReady", True),
        ("inference.GRPCInferenceService/ModelReady", False),
        ("inference.GRPCInferenceService/ModelInfer", False),
        ("visionpool.v1.Vision/Predict", False),
        ("visionpool.v1.Vision/Invented", False),
        ("invented.Service/Method", False),
    ],
)
def test_grpc_lets_only_health_checks_in(channel: Any, method: str, free: bool) -> None:
    assert (code(channel, f"/{method}") is not grpc.StatusCode.UNAUTHENTICATED) is free
    assert code(channel, f"/{method}", GOOD[2]) is not grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("method", "request_bytes"),
    [
        ("/visionpool.v1.Vision/PredictStream", v1.PredictStreamRequest(model="colour").SerializeToString()),
        ("/inference.GRPCInferenceService/ModelStreamInfer", pb.ModelInferRequest().SerializeToString()),
        (
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            reflected.ServerReflectionRequest(list_services="").SerializeToString(),
        ),
    ],
)
def test_streams_and_reflection_need_a_key(channel: Any, method: str, request_bytes: bytes) -> None:
    call = channel.stream_stream(method)
    with pytest.raises(grpc.RpcError) as refused:
        list(call(iter([request_bytes]), timeout=BOUND))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert list(call(iter([request_bytes]), metadata=(("x-api-key", ALICE),), timeout=BOUND))


def test_a_call_without_a_key_is_refused_before_its_body_is_read(server: Server) -> None:
    with connected(server) as connection:
        connection.head("POST", "/v1/models/colour/predict", "Content-Length: 60000000", "Expect: 100-continue")
        answer = connection.answer()  # none of the body was sent, nor asked for
    assert answer.status == 401


def test_what_follows_a_body_is_no_header(server: Server) -> None:
    """Proxies that look at headers have let it pass."""
    with connected(server) as connection:
        connection.send(
            b"POST /v1/models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\nx\r\n0\r\nX-API-Key: " + ALICE.encode() + b"\r\n\r\n"
        )
        assert connection.answer().status == 401


def test_the_log_names_who_called_and_shows_no_key(server: Server) -> None:
    for name, headers in (("by-alice", GOOD[0]), ("by-nobody", {})):
        httpx.get(f"{server.url}/v1/models", headers={**headers, "X-Request-ID": name}, timeout=BOUND)
    server.wait_for(r"GET /v1/models 200 ok .*caller=alice.*\[by-alice\]", BOUND)
    server.wait_for(r"GET /v1/models 401 unauthenticated .*\[by-nobody\]", BOUND)
    assert ALICE not in server.log()


def test_the_documentation_says_how_a_key_is_shown(server: Server) -> None:
    document = httpx.get(f"{server.url}/openapi.json", headers=GOOD[0], timeout=BOUND).json()
    schemes = document["components"]["securitySchemes"]
    assert {name for wanted in document["security"] for name in wanted} == schemes.keys()
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert (operation.get("security") == []) is (path in OPEN)
            assert ("401" in operation["responses"]) is (path not in OPEN)


def test_the_client_raises_it_typed(server: Server, channel: Any) -> None:
    from visionpool import Client

    with Client(server.url) as client, pytest.raises(errors.Unauthenticated, match="API key"):
        client.models()
    call: Any = channel.unary_unary("/visionpool.v1.Vision/ListModels").future(b"", timeout=BOUND)
    assert isinstance(refusal_of(call.exception(BOUND), server.grpc).error, errors.Unauthenticated)


def eventually(holds: Callable[[], bool]) -> None:
    """The file is looked at once a second."""
    deadline = time.monotonic() + BOUND
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_keys_are_rotated_as_kubernetes_does_and_a_bad_file_changes_nothing(model: Path, tmp_path: Path) -> None:
    """A volume with secrets: api-keys -> ..data/api-keys, ..data -> a folder, swapped by a rename."""

    def mount(number: int, content: str) -> None:
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "api-keys").write_text(content)
        (tmp_path / "new").symlink_to(folder.name)
        (tmp_path / "new").replace(tmp_path / "..data")

    mount(1, f"{OLD}\n")
    (tmp_path / "api-keys").symlink_to("..data/api-keys")
    with serving(model, "--api-keys", tmp_path / "api-keys") as server, grpc.insecure_channel(server.grpc) as channel:

        def let_in(key: str) -> bool:
            headers = {"X-API-Key": key}
            over_grpc = code(channel, "/visionpool.v1.Vision/ListModels", headers) is grpc.StatusCode.OK
            assert over_grpc is (status(server, headers=headers) == 200)
            return over_grpc

        assert let_in(OLD) and not let_in(ALICE)
        mount(2, f"{OLD}\nalice:{ALICE}\n")
        server.wait_for("the API keys were read again: there are 2", BOUND)
        assert let_in(OLD) and let_in(ALICE)
        mount(3, "two words\n")
        server.wait_for("ERROR .*the API keys stay as they were.*line 1 of .* is no key", BOUND)
        assert let_in(OLD) and let_in(ALICE)
        assert "two words" not in server.log()
        mount(4, f"alice:{ALICE}\n")
        server.wait_for("the API keys were read again: there are 1", BOUND)
        assert let_in(ALICE) and not let_in(OLD)


def test_a_file_changed_in_place_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{OLD}\n")
    keys = ApiKeys(path)
    assert (keys.caller(None, OLD), keys.caller(None, "new-key")) == ("", None)
    path.write_text("bob:new-key\n")
    keys.refresh()
    assert (keys.caller(None, OLD), keys.caller(None, "new-key")) == (None, "bob")
    path.unlink()
    keys.refresh()
    keys.refresh()
    assert keys.caller("Bearer new-key", None) == "bob"
    assert caplog.text.count("the API keys stay as they were") == 1
    path.write_text(f"{OLD}\n")
    keys.refresh()
    assert keys.caller(None, OLD) == ""


KEYS = st.text(VISIBLE, min_size=1, max_size=60)
NAMES = st.text("abcXYZ019._@-", min_size=1, max_size=64)


@given(st.dictionaries(KEYS.map(lambda key: key.replace(":", "_").replace("#", "_")), NAMES | st.just(""), min_size=1))
def test_what_a_file_says_is_what_counts(tmp_path_factory: pytest.TempPathFactory, named: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("\n# a comment\n".join(f"{name}:{key}" if name else key for key, name in named.items()))
    keys = ApiKeys(path)
    assert {key: keys.caller(None, key) for key in named} == named
    assert {key: keys.caller(f"Bearer {key}", None) for key in named} == named


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_file_has_keys_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-keys"
    path.write_bytes(content)
    try:
        assert read_keys(path)
    except errors.InvalidSetting as error:
        assert "--api-keys" in error.message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "there is no key"),
        ("# only this\n\n", "there is no key"),
        ("good\ntwo words\n", "line 2"),
        ("alice:\n", "line 1"),
        (":key\n", "line 1"),
        ("a b:key\n", "line 1"),
        ("clé\n", "line 1"),
        ("k" * 1025, "line 1"),
        ("alice:same\nbob:same\n", "second time"),
        ("k\n" * 2**20, "larger than 1 MiB"),
    ],
)
def test_a_bad_file_stops_the_start_and_is_not_shown(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(errors.InvalidSetting, match=says) as refused:
        ApiKeys(path)
    assert refused.value.hint
    assert all(word not in str(refused.value) for word in ("two words", "clé", "same\n"))


def test_a_file_that_is_not_there_is_one_clear_line(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "visionpool", "serve", str(model), "--api-keys", str(tmp_path / "none")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "error: --api-keys: cannot read" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_picture_with_a_key_is_answered(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/v1/models/colour/predict", content=picture((9, 1, 0)), headers=GOOD[2], timeout=BOUND
    )
    assert answer.json()["results"][0]["labels"][0] == "red"
