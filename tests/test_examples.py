"""The examples, run as a user would: each as a process of its own, against a real server with the demo models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import pytest

from tests.real_server import Server

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PICTURE = EXAMPLES / "shapes.jpg"
LABELS = ["star", "circle", "cross", "ring", "square", "cross", "heart", "pentagon", "heart"]
FRAMES = 5


@pytest.fixture(scope="module")
def addresses(demo_server: Server) -> dict[str, str]:
    """The value of each option that says where the server is."""
    grpc = demo_server.wait_for(r"gRPC +(\S+:\d+)").group(1)
    return {"--url": demo_server.url, "--address": grpc}


def run(name: str, *arguments: object, fails: bool = False, folder: Path = ROOT) -> str:
    """What an example prints: to stdout where it succeeds, to stderr where it is to fail."""
    command = ["bash"] if name.endswith(".sh") else [sys.executable]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, str(EXAMPLES / name), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def first_words(printed: str, count: int) -> list[str]:
    return [line.split()[0] for line in printed.splitlines()[:count]]


def video(path: Path) -> Path:
    """A small video that shows the sample scene in every frame."""
    picture = cv2.imread(str(PICTURE))
    assert picture is not None
    height, width = picture.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    assert writer.isOpened()
    for _ in range(FRAMES):
        writer.write(picture)
    writer.release()
    return path


def test_every_example_is_run_here() -> None:
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    tested = Path(__file__).read_text(encoding="utf-8")
    assert scripts and all(f'"{name}"' in tested for name in scripts)


def test_curl_shows_models_and_results_and_saves_the_drawn_picture(addresses: dict[str, str], tmp_path: Path) -> None:
    printed = run("rest_curl.sh", "--url", addresses["--url"], PICTURE, folder=tmp_path)
    assert '"shapes"' in printed and printed.count('"star"') == 3
    picture, original = cv2.imread(str(tmp_path / printed.split()[-1])), cv2.imread(str(PICTURE))
    assert picture is not None and original is not None and picture.shape == original.shape


def test_the_http_client_prints_what_it_found(addresses: dict[str, str]) -> None:
    models, *found = run("rest_python.py", "--url", addresses["--url"], PICTURE).splitlines()
    assert models == "models: shapes, digits"
    assert [line.split()[0] for line in found] == LABELS


def test_the_http_client_prints_the_classes_of_a_digit(addresses: dict[str, str]) -> None:
    _, *found = run("rest_python.py", "--url", addresses["--url"], "--model", "digits", PICTURE).splitlines()
    assert len(found) == 5


def test_the_grpc_client_prints_what_it_found_and_draws_it(addresses: dict[str, str], tmp_path: Path) -> None:
    drawn = tmp_path / "found.jpg"
    printed = run("grpc_python.py", "--address", addresses["--address"], "--save", drawn, PICTURE)
    assert first_words(printed, 9) == LABELS
    assert "infer" in printed and cv2.imread(str(drawn)) is not None


def test_the_plain_stub_prints_what_it_found(addresses: dict[str, str]) -> None:
    printed = run("grpc_stub.py", "--address", addresses["--address"], PICTURE)
    assert first_words(printed, 9) == LABELS
    assert printed.splitlines()[0].split(maxsplit=2)[2] == "297, 139, 407, 249"


@pytest.mark.parametrize(("name", "option"), [("tritonclient_http.py", "--url"), ("tritonclient_grpc.py", "--address")])
def test_tritons_clients_get_results_of_pictures_and_the_models_own_tensors(
    addresses: dict[str, str], name: str, option: str
) -> None:
    printed = run(name, option, addresses[option], PICTURE).splitlines()
    assert [line.split()[0] for line in printed[:-1]] == LABELS
    assert printed[-1] == "output0: FP32 [1, 12, 2100]"


def test_a_video_is_answered_frame_by_frame(addresses: dict[str, str], tmp_path: Path) -> None:
    source = video(tmp_path / "scene.avi")
    *lines, summary = run("video.py", "--address", addresses["--address"], source).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"frame {number}" for number in range(1, FRAMES + 1)]
    expected = Counter(f"{count} {label}" for label, count in Counter(LABELS).items())
    assert all(Counter(line.partition(": ")[2].split(", ")) == expected for line in lines)
    assert summary.startswith(f"{FRAMES} frames")


def test_a_folder_is_a_video_too_and_a_broken_picture_spoils_only_its_own_frame(
    addresses: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "1.jpg").write_bytes(PICTURE.read_bytes())
    (tmp_path / "2.jpg").write_bytes(b"no picture")
    (tmp_path / "3.jpg").write_bytes(PICTURE.read_bytes())
    first, second, third, _ = run("video.py", "--address", addresses["--address"], tmp_path).splitlines()
    assert "unsupported_media" in second
    assert "1 star" in first and "1 star" in third


@pytest.mark.parametrize(
    ("name", "option", "says"),
    [
        ("rest_curl.sh", "--url", "404"),
        ("rest_python.py", "--url", "model_not_found: no model 'nope'"),
        ("grpc_python.py", "--address", "model_not_found: no model 'nope'"),
        ("grpc_stub.py", "--address", "NOT_FOUND: no model 'nope'"),
        ("video.py", "--address", "model_not_found: no model 'nope'"),
        ("tritonclient_http.py", "--url", "no model 'nope'"),
        ("tritonclient_grpc.py", "--address", "no model 'nope'"),
    ],
)
def test_a_model_that_is_not_there_is_told_as_such(
    addresses: dict[str, str], name: str, option: str, says: str, tmp_path: Path
) -> None:
    source: Any = PICTURE
    if name == "video.py":
        (tmp_path / "1.jpg").write_bytes(PICTURE.read_bytes())
        source = tmp_path
    told = run(name, option, addresses[option], "--model", "nope", source, fails=True)
    assert says in told
    if not name.startswith("tritonclient"):
        assert "Traceback" not in told
