"""The examples, and the code in the docs, run as a user would: as processes of their own, against real servers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import visionpool
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from visionpool_server.api.errors import STATUS

from tests import tiny_models
from tests.conftest import Serve
from tests.real_server import Server, serving, write_model

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


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def block_with(page: str, language: str, text: str) -> str:
    """The one block of that language with that text in it."""
    (found,) = [block for block in blocks(page, language) if text in block]
    return found


def shell(script: str, folder: Path = ROOT) -> str:
    """What a script of the docs prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{script}"],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def docs_server(addresses: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The models that the docs speak of: `sum`, `street` on another server, and `aliased` with fastdeployserver's names."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("sum", "street", "aliased"):
        (folder / name).mkdir()
    tiny_models.plain(folder / "sum/sum.onnx", shape=("n", 4), op="Add", inputs=("a", "b"))
    remote = block_with("README.md", "yaml", "backend: remote")
    for shown, here in (("gpu-box:8001", addresses["--address"]), ("model: yolov8n", "model: shapes")):
        assert shown in remote
        remote = remote.replace(shown, here)
    (folder / "street/model.yaml").write_text(remote, encoding="utf-8")
    names = ("circle", "square", "triangle", "star", "pentagon", "cross", "ring", "heart")
    (folder / "street/coco.names").write_text("\n".join(names), encoding="utf-8")
    weights = ROOT / "server/visionpool_server/demo/shapes/shapes.onnx"
    (folder / "aliased/shapes.onnx").write_bytes(weights.read_bytes())
    (folder / "aliased/model.yaml").write_text(block_with("docs/protocols.md", "yaml", "aliases"), encoding="utf-8")
    with serving(folder) as server:
        yield server


PYTHON = [
    pytest.param(code, id=f"{page} {number}")
    for page in ("README.md", "docs/grpc.md", "docs/protocols.md")
    for number, code in enumerate(blocks(page, "python"), 1)
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_in_the_docs_runs_as_it_stands_there(addresses: dict[str, str], code: str, tmp_path: Path) -> None:
    if "street.mp4" in code:
        code = code.replace("street.mp4", str(video(tmp_path / "street.avi")))
    here = code.replace("http://127.0.0.1:8000", addresses["--url"]).replace("127.0.0.1:8001", addresses["--address"])
    here = here.replace("127.0.0.1:8000", addresses["--url"].removeprefix("http://"))
    done = subprocess.run(
        [sys.executable, "-c", here], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "star" in done.stdout or done.stdout.split() == ["9"] * 8


@pytest.mark.parametrize("page", ["README.md", "docs/protocols.md"])
def test_a_plain_tensor_model_adds(docs_server: Server, page: str) -> None:
    command = block_with(page, "bash", "/v2/models/sum/infer").replace("http://127.0.0.1:8000", docs_server.url)
    (output,) = json.loads(shell(command))["outputs"]
    assert output["data"] == [11, 22, 33, 44]


def test_a_model_on_another_server_answers_pictures(docs_server: Server) -> None:
    with visionpool.Client(docs_server.url) as client:
        result = client.predict("street", PICTURE)
    assert isinstance(result, visionpool.DetectionResult) and list(result.labels) == LABELS


def test_the_aliases_are_what_fastdeployservers_clients_ask_for(docs_server: Server) -> None:
    address = docs_server.wait_for(r"gRPC +(\S+:\d+)").group(1)
    pixels = cv2.imread(str(PICTURE))
    assert pixels is not None
    with InferenceServerClient(address) as client:
        given = InferInput("INPUT", [1, *pixels.shape], "UINT8")
        given.set_data_from_numpy(pixels[None])
        answer = client.infer("aliased", [given], outputs=[InferRequestedOutput("detction_result")])
    found = answer.as_numpy("detction_result")
    assert found.shape == (1,) and json.loads(found[0])["labels"] == LABELS


def test_models_are_loaded_and_unloaded_by_the_commands_of_the_docs(serve: Serve, tmp_path: Path) -> None:
    start, *commands = block_with("docs/protocols.md", "bash", "--model-control-mode").splitlines()
    write_model(tmp_path / "models/street")
    arguments = start.removeprefix("visionpool serve models/ ").split()
    server = serve(tmp_path / "models", *arguments)
    printed = shell("\necho\n".join(commands).replace("http://127.0.0.1:8000", server.url)).splitlines()
    assert [json.loads(line) for line in printed] == [[{"name": "street", "version": "1", "state": "READY"}], {}, {}]


def test_the_stub_is_generated_by_the_command_of_the_docs(tmp_path: Path) -> None:
    _, command = block_with("docs/grpc.md", "bash", "grpc_tools.protoc").splitlines()
    shell(command.replace("_out=.", f"_out={tmp_path}"))
    assert {path.name for path in tmp_path.glob("visionpool/v1/*")} == {"vision_pb2.py", "vision_pb2_grpc.py"}


def statuses(page: str) -> dict[str, tuple[str, ...]]:
    """Code -> the statuses that a page's table of errors gives it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    by_code = re.findall(r"^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \| (\d+) \| `([A-Z_]+)` \|", text, re.MULTILINE)
    by_status = re.findall(r"^\| (\d+) \| (`[a-z_]+`(?:, `[a-z_]+`)*) \|", text, re.MULTILINE)
    rows = [(codes, found) for codes, *found in by_code] + [(codes, [http]) for http, codes in by_status]
    return {code: tuple(found) for codes, found in rows for code in re.findall("[a-z_]+", codes)}


def test_the_tables_of_errors_are_what_the_server_answers() -> None:
    true = {kind.code: (str(status.http), status.grpc) for kind, status in STATUS.items()}
    families = {"error", "request_error", "service_error", "setup_error", "connection_failed"}  # never answered
    assert statuses("docs/protocols.md") == {code: true[code] for code in true.keys() - families}
    shown = statuses("docs/http.md")
    assert shown and shown == {code: true[code][:1] for code in shown}


def test_links_to_headings_lead_to_one() -> None:
    def slug(heading: str) -> str:
        return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")

    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)]*#[^)]+)\)", page.read_text(encoding="utf-8")):
            file, _, anchor = target.partition("#")
            there = (page.parent / file if file else page).read_text(encoding="utf-8")
            headings = {slug(heading) for heading in re.findall(r"^#+ (.+)$", there, re.MULTILINE)}
            assert anchor in headings, f"{page.name} links to {target}"
