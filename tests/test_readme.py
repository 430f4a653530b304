"""The README's commands, run as they stand there; only the address is that of a server on a free port."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def block_with(language: str, text: str) -> str:
    """The one block of that language with that text in it."""
    (found,) = [block for block in blocks(language) if text in block]
    return found


def run(command: list[str], folder: Path = ROOT) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def answer(demo_server: Any) -> dict[str, Any]:
    command = block_with("bash", "/v1/models/shapes/predict").replace(ADDRESS, demo_server.url)
    given: dict[str, Any] = json.loads(run(["bash", "-c", command]))
    return given


def test_the_first_curl_gets_the_answer_that_is_printed_below_it(answer: dict[str, Any]) -> None:
    printed = json.loads(block_with("json", '"timings_ms"'))
    assert answer.keys() == printed.keys() and answer["timings_ms"].keys() == printed["timings_ms"].keys()
    (got,), (shown,) = answer["results"], printed["results"]
    assert got["labels"] == shown["labels"]
    assert got["scores"] == pytest.approx(shown["scores"], abs=0.005)
    for box, expected in zip(got["boxes"], shown["boxes"], strict=True):
        assert box == pytest.approx(expected, abs=0.5)


def test_the_picture_is_drawn_as_the_readme_says(demo_server: Any, tmp_path: Path) -> None:
    (options,) = re.findall(r"`(-H 'Accept: image/jpeg' -o found.jpg)`", README)
    command = block_with("bash", "/v1/models/shapes/predict").replace(ADDRESS, demo_server.url).strip()
    run(["bash", "-c", command.replace("examples/", f"{ROOT}/examples/") + f" {options}"], tmp_path)
    drawn, shown = cv2.imread(str(tmp_path / "found.jpg")), cv2.imread(str(ROOT / "docs/annotated.jpg"))
    assert drawn is not None and shown is not None
    assert drawn.shape == shown.shape
    assert cv2.absdiff(drawn, shown).mean() < 2


def test_predict_works_without_a_server(tmp_path: Path) -> None:
    command = block_with("bash", "visionpool predict").strip()
    shown = run(["bash", "-c", command.replace("examples/", f"{ROOT}/examples/")], tmp_path)
    assert "star" in shown and (tmp_path / "found.jpg").stat().st_size > 10_000


def test_a_model_is_inspected_compared_and_quantised_as_it_stands_there(tmp_path: Path) -> None:
    commands = block_with("bash", "visionpool inspect").splitlines()
    here = [line.replace("examples/", f"{ROOT}/examples/") for line in commands]
    inspected, compared, built = (run(["bash", "-c", line], tmp_path) for line in here)
    assert "detection" in inspected and "Convolution" in inspected and "FLOPs" in inspected
    assert "bf16" in compared and "agreement" in compared
    assert "int8" in built and "boxes found by both" in built
    shown = run(["bash", "-c", f"visionpool predict shapes-int8 {ROOT}/examples/shapes.jpg"], tmp_path)
    assert "star" in shown


def test_the_python_example_prints_what_it_found(demo_server: Any, answer: dict[str, Any]) -> None:
    code = block_with("python", "visionpool.Client").replace(ADDRESS, demo_server.url)
    lines = run([sys.executable, "-c", code]).splitlines()
    assert [line.split()[0] for line in lines] == answer["results"][0]["labels"]


def test_the_commands_that_need_a_users_own_files_are_ones_that_exist(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    shown = block_with("bash", "visionpool serve yolov8n.onnx")
    assert all(line.startswith("visionpool serve ") for line in shown.splitlines())
    (tmp_path / "models").mkdir()
    for name in ("shapes", "digits"):
        weights = (ROOT / f"server/visionpool_server/demo/{name}/{name}.onnx").read_bytes()
        (tmp_path / "models" / f"{name}.onnx").write_bytes(weights)
    log = serve(tmp_path / "models").log()
    assert "shapes  detection" in log and "digits  classification" in log


def test_links_of_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
