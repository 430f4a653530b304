"""Pictures fetched by URL: from where the operator allowed it, and by no trick from anywhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from visionpool.errors import InvalidSetting
from visionpool_server.api.urls import UrlFetcher

from tests.raw_http import error_of
from tests.real_server import Server, picture, scores, serving, shares, write_model

RED = (200, 20, 30)
PREDICT = "/v1/models/colours/predict"


class Gallery(ThreadingHTTPServer):
    """A web server of pictures; it notes what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    server: Gallery

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body, headers = 200, picture(RED), {}
        match self.path.rpartition("/")[2]:
            case "gone.png":
                status = 404
            case "moved.png":
                status, headers = 302, {"Location": f"{self.server.url}/pictures/red.png"}
            case "huge.png":
                body = bytes(3 * 2**20)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            """The server hung up in the middle of a body that was too large."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Nothing: `asked` has it all."""


@pytest.fixture(scope="module")
def gallery() -> Iterator[Gallery]:
    with Gallery() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def server(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = write_model(tmp_path_factory.mktemp("urls") / "colours")
    with serving(folder, "--allow-urls", f"{gallery.url}/pictures/", "--max-body-mb", 1) as made:
        yield made


def ask(server: Server, *urls: str) -> httpx.Response:
    return httpx.post(server.url + PREDICT, json={"images": [{"url": url} for url in urls]}, timeout=30)


def test_a_picture_is_fetched_from_where_it_is_allowed(server: Server, gallery: Gallery) -> None:
    response = ask(server, f"{gallery.url}/pictures/red.png", f"{gallery.url}/pictures/deep/down/red.png?size=2#top")
    assert response.status_code == 200, response.text
    for index in (0, 1):
        assert scores(response.json(), index) == pytest.approx(shares(RED), abs=0.01)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{other}/pictures/red.png",
        "http://localhost:{port}/pictures/red.png",
        "http://127.0.0.1/pictures/red.png",
        "https://127.0.0.1:{port}/pictures/red.png",
        "ftp://127.0.0.1:{port}/pictures/red.png",
        "file:///etc/hostname",
        "http://127.0.0.1:{port}/red.png",
        "http://127.0.0.1:{port}/pictures",
        "http://127.0.0.1:{port}/pictures-of-others/red.png",
        "http://127.0.0.1:{port}/pictures/../red.png",
        "http://127.0.0.1:{port}/pictures/%2e%2e/red.png",
        "http://127.0.0.1:{port}/pictures/.%2E/red.png",
        "http://127.0.0.1:{port}/pictures/..%2fred.png",
        "http://127.0.0.1:{port}/pictures\\..\\red.png",
        "http://127.0.0.1:{port}@evil.example/pictures/red.png",
        "http://user:word@127.0.0.1:{port}/pictures/red.png",
        "http://evil.example/pictures/red.png?http://127.0.0.1:{port}/pictures/",
        "http://127.0.0.1:{port}.evil.example/pictures/red.png",
        "http://127.0.0.1:99999/pictures/red.png",
        "http://[::1/pictures/red.png",
        "//127.0.0.1:{port}/pictures/red.png",
        "/pictures/red.png",
        "",
    ],
)
def test_what_is_not_below_an_allowed_prefix_is_not_even_asked_for(server: Server, gallery: Gallery, url: str) -> None:
    asked = len(gallery.asked)
    response = ask(server, url.format(port=gallery.port, other=server.port))
    error = error_of(response.content, response.headers["content-type"])
    assert (response.status_code, error["code"]) == (400, "invalid_request")
    assert "does not fetch" in error["message"]
    assert len(gallery.asked) == asked


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("gone.png", 400, "404"),
        ("moved.png", 400, "302"),
        ("huge.png", 413, "1 MiB"),
        ("a\tb\n.png", 400, "URL"),
        ("a\x00b.png", 400, "URL"),
    ],
)
def test_what_cannot_be_fetched_is_the_callers_error(
    server: Server, gallery: Gallery, name: str, status: int, says: str
) -> None:
    response = ask(server, f"{gallery.url}/pictures/{name}")
    error = error_of(response.content, response.headers["content-type"])
    assert response.status_code == status, response.text
    assert says in error["message"]


def test_redirects_are_not_followed(server: Server, gallery: Gallery) -> None:
    asked = len(gallery.asked)
    ask(server, f"{gallery.url}/pictures/moved.png")
    assert gallery.asked[asked:] == ["/pictures/moved.png"]


def test_a_host_that_does_not_answer_is_the_callers_error(gallery: Gallery, server: Server) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as unused:
        port = unused.server_address[1]
    response = ask(server, f"http://127.0.0.1:{port}/pictures/red.png")
    assert response.status_code == 400


class TestPrefixes:
    @pytest.mark.parametrize(
        ("prefix", "url", "allowed"),
        [
            ("https://img.example.com/", "https://img.example.com/a.jpg", True),
            ("https://img.example.com", "https://img.example.com/a.jpg", True),
            ("https://img.example.com/", "https://IMG.example.com:443/a.jpg", True),
            ("https://img.example.com/a", "https://img.example.com/a/b.jpg", True),
            ("https://img.example.com/a/b.jpg", "https://img.example.com/a/b.jpg", True),
            ("https://img.example.com/a", "https://img.example.com/ab.jpg", False),
            ("https://img.example.com/", "https://img.example.com.evil.org/a.jpg", False),
            ("https://img.example.com/", "https://sub.img.example.com/a.jpg", False),
        ],
    )
    def test_a_prefix_ends_at_a_part_of_the_path(self, prefix: str, url: str, allowed: bool) -> None:
        assert UrlFetcher((prefix,), 1000).allows(url) is allowed

    def test_a_prefix_that_is_no_url_is_refused_at_the_start(self) -> None:
        for prefix in ("img.example.com", "http://h:99999/", "http://[::1"):
            with pytest.raises(InvalidSetting, match="--allow-urls"):
                UrlFetcher((prefix,), 1000)
