"""The command `visionpool` in processes of its own: what a user types, sees, and sees when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import httpx
import pytest
import typer
from visionpool_server.app import DEMO_MODELS
from visionpool_server.cli import app

from tests.conftest import Serve
from tests.real_server import Server, picture, scores, serving, shares, write_model

RED, GREEN = (200, 20, 30), (20, 200, 30)
Done = subprocess.CompletedProcess[str]


def visionpool(*arguments: object, environment: Mapping[str, str] | None = None) -> Done:
    """Runs the command to its end."""
    command = [sys.executable, "-m", "visionpool", *map(str, arguments)]
    around = {**os.environ, "COLUMNS": "200", **(environment or {})}
    return subprocess.run(command, env=around, capture_output=True, text=True, timeout=120, check=False)


def failed(done: Done, *says: str, status: int = 1) -> None:
    """It ended with `status` and one clear line, a hint at most after it."""
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), done.stderr
    for words in says:
        assert words in done.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "colours")


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return write(tmp_path / "red.png", RED)


@pytest.fixture
def green(tmp_path: Path) -> Path:
    return write(tmp_path / "green.jpg", GREEN)


def write(path: Path, colour: tuple[int, int, int]) -> Path:
    path.write_bytes(picture(colour, (120, 80), path.suffix))
    return path


class TestHelp:
    @pytest.mark.parametrize(
        ("arguments", "examples"),
        [
            (["--help"], ["visionpool serve yolov8n.onnx", "visionpool predict yolov8n.onnx street.jpg"]),
            (
                ["serve", "--help"],
                [
                    "visionpool serve models/ --http-port 9000",
                    "--grpc-port 9001",
                    "--model-control-mode explicit --load-model street",
                    "HETERO:GPU,CPU",
                    "VISIONPOOL_HTTP_PORT",
                ],
            ),
            (["predict", "-h"], ["visionpool predict yolov8n.onnx street.jpg --save found.jpg", "--json"]),
        ],
    )
    def test_help_shows_examples(self, arguments: list[str], examples: list[str]) -> None:
        done = visionpool(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        for example in ["Examples", *examples]:
            assert example in done.stdout

    def test_the_version_is_shown(self) -> None:
        done = visionpool("--version")
        assert done.returncode == 0
        assert re.fullmatch(r"visionpool \d+\.\d+\.\d+\S*\n", done.stdout)

    @pytest.mark.parametrize("arguments", [["serf"], ["serve", "--http-prot", 1], ["serve", "--http-port", 99999]])
    def test_a_mistyped_command_line_is_named(self, arguments: list[str]) -> None:
        done = visionpool(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert str(arguments[-1 if len(arguments) == 1 else 1]) in done.stderr

    def test_every_flag_of_serve_has_a_twin_in_the_environment_and_a_help_text(self) -> None:
        command = typer.main.get_command(app)
        serve = getattr(command, "commands")["serve"]  # noqa: B009  a group's, which typer does not say
        flags = [parameter for parameter in serve.params if parameter.name != "help"]
        assert len(flags) > 10
        for parameter in flags:
            assert parameter.envvar == f"VISIONPOOL_{parameter.name.upper()}"
            assert parameter.help, parameter.name


class TestPredict:
    def test_a_table_shows_labels_and_scores_best_first(self, model: Path, red: Path, green: Path) -> None:
        done = visionpool("predict", model, red, green)
        assert (done.returncode, done.stderr) == (0, "")
        first, second = done.stdout.split(str(green))
        assert str(red) in first
        assert re.findall(r"(red|green|blue) *│ +(\d\.\d+)", first) == [
            ("red", "0.8000"),
            ("blue", "0.1200"),
            ("green", "0.0800"),
        ]
        assert re.findall(r"red|green|blue", second)[0] == "green"

    def test_json_is_one_line_for_each_picture(self, model: Path, red: Path, green: Path) -> None:
        done = visionpool("predict", model, red, green, "--json", "--top-k", 1)
        assert (done.returncode, done.stderr) == (0, "")
        first, second = map(json.loads, done.stdout.splitlines())
        assert (first["picture"], first["labels"], first["scores"]) == (str(red), ["red"], [0.8])
        assert (second["picture"], second["labels"]) == (str(green), ["green"])

    def test_options_reach_the_model(self, model: Path, red: Path) -> None:
        done = visionpool("predict", model, red, "--json", "--classes", "green, 2", "--score-threshold", 0.1)
        assert json.loads(done.stdout)["labels"] == ["blue"]

    @pytest.mark.parametrize("name", ["found.jpg", "found.PNG", "new/folder/found.jpeg"])
    def test_the_annotated_picture_is_saved(self, model: Path, red: Path, tmp_path: Path, name: str) -> None:
        done = visionpool("predict", model, red, "--save", tmp_path / name)
        assert (done.returncode, done.stderr) == (0, "")
        saved = cv2.imread(str(tmp_path / name))
        assert saved is not None
        assert saved.shape == (80, 120, 3)

    def test_several_annotated_pictures_are_saved_in_a_folder(
        self, model: Path, red: Path, green: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        namesake = shutil.copy(red, tmp_path / "other" / red.name)
        done = visionpool("predict", model, red, green, namesake, "--save", tmp_path / "out")
        assert done.returncode == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["green.jpg", "red-2.jpg", "red.jpg"]

    def test_a_server_is_asked_where_a_url_is_given(self, shared_server: Server, red: Path) -> None:
        done = visionpool("predict", "colours", red, "--url", shared_server.url, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["labels"][0] == "red"

    @pytest.mark.parametrize(("name", "kind"), [("shapes", "detection"), ("digits", "classification")])
    def test_a_demo_model_is_found_by_its_name(self, red: Path, name: str, kind: str) -> None:
        if not (DEMO_MODELS / name).is_dir():
            pytest.skip(f"the demo model {name} is not trained yet")
        done = visionpool("predict", name, red, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["type"] == kind


class TestPredictMistakes:
    def test_a_model_that_is_not_there(self, tmp_path: Path, red: Path) -> None:
        failed(visionpool("predict", tmp_path / "nothing", red), "nothing does not exist", "hint: check the path")

    def test_a_picture_that_is_not_there(self, model: Path, tmp_path: Path) -> None:
        failed(visionpool("predict", model, tmp_path / "no.png"), f"{tmp_path / 'no.png'}: no such file or directory")

    def test_of_several_pictures_the_bad_one_is_named(self, model: Path, red: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.png").write_bytes(picture(RED)[:40])
        done = visionpool("predict", model, red, tmp_path / "bad.png", "--json")
        failed(done, f"{tmp_path / 'bad.png'}: ")
        assert len(done.stdout.splitlines()) == 1  # the good one before it is answered

    def test_a_folder_of_several_models(self, tmp_path: Path, red: Path) -> None:
        for name in ("one", "two"):
            write_model(tmp_path / "models" / name)
        failed(visionpool("predict", tmp_path / "models", red), "several models: one, two", "hint: name one")

    def test_an_option_that_means_nothing_to_the_model(self, model: Path, red: Path) -> None:
        failed(visionpool("predict", model, red, "--iou-threshold", 0.5), "iou_threshold", "it takes")

    @pytest.mark.parametrize(("target", "says"), [("x.gif", ".jpg or .png"), ("red.png/x.jpg", "red.png")])
    def test_a_place_to_save_that_cannot_be_written(
        self, model: Path, red: Path, tmp_path: Path, target: str, says: str
    ) -> None:
        failed(visionpool("predict", model, red, "--save", tmp_path / target), "--save", says)

    def test_one_file_for_several_pictures(self, model: Path, red: Path, green: Path, tmp_path: Path) -> None:
        failed(visionpool("predict", model, red, green, "--save", tmp_path / "x.jpg"), "several pictures", "a folder")

    def test_a_server_that_is_not_there(self, red: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        failed(visionpool("predict", "colours", red, "--url", f"http://127.0.0.1:{port}"), "nothing answers", str(port))


class TestServe:
    def test_it_says_what_is_served_where_on_what_and_how_to_try_it(self, serve: Serve, model: Path) -> None:
        server = serve(model, "--workers", 3)
        server.wait_for("try it.*predict")
        log = server.log()
        assert re.search(r"colours +classification .*model\.yaml.* fake none f32, 3 workers", log)
        assert f"visionpool is ready at {server.url}" in log
        assert f"{server.url}/docs" in log
        assert (
            f"curl --data-binary @picture.jpg -H 'Content-Type: image/jpeg' {server.url}/v1/models/colours/predict"
            in log
        )

    def test_a_repository_serves_every_model_in_it(self, serve: Serve, tmp_path: Path) -> None:
        for name in ("one", "two/1", "two/3"):
            write_model(tmp_path / "models" / name)
        (tmp_path / "models" / "notes").mkdir()
        server = serve(tmp_path / "models")
        listed = httpx.get(f"{server.url}/v1/models", timeout=30).json()["models"]
        assert [(model["name"], model["version"]) for model in listed] == [("one", "1"), ("two", "3")]

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
    def test_it_stops_with_status_0_and_says_nothing_about_it(self, model: Path, how: signal.Signals) -> None:
        with serving(model) as server:
            httpx.post(f"{server.url}/v1/models/colours/predict", content=picture(RED), timeout=30)
            assert server.stop(how) == 0
            assert "Traceback" not in server.log()

    def test_it_stops_while_it_is_still_loading(self, tmp_path: Path) -> None:
        slow = write_model(tmp_path / "slow", {"load_ms": 2000})
        with serving(write_model(tmp_path / "quick"), slow, ready=False) as server:
            server.wait_for("quick ")
            assert server.stop() == 0

    def test_the_environment_says_what_flags_would(self, model: Path) -> None:
        environment = {
            "VISIONPOOL_MODELS": str(model),
            "VISIONPOOL_HTTP_PORT": "0",
            "VISIONPOOL_HOST": "127.0.0.1",
            "VISIONPOOL_WORKERS": "5",
            "VISIONPOOL_MAX_BODY_MB": "1",
            "VISIONPOOL_MAX_PIXELS": "1000",
            "VISIONPOOL_LOG_LEVEL": "warning",
        }
        with serving(environment=environment) as server, httpx.Client(base_url=server.url, timeout=30) as client:
            path = "/v1/models/colours/predict"
            assert client.get("/v1/models/colours").json()["workers"][0]["count"] == 5
            assert client.post(path, content=picture(RED, (40, 26))).status_code == 413
            assert client.post(path, content=bytes(2**20 + 1)).status_code == 413
            assert scores(client.post(path, content=picture(RED)).json()) == pytest.approx(shares(RED), abs=0.01)

    def test_a_flag_wins_over_the_environment(self, serve: Serve, model: Path) -> None:
        server = serve(model, "--workers", 1, environment={"VISIONPOOL_WORKERS": "5"})
        described = httpx.get(f"{server.url}/v1/models/colours", timeout=30).json()
        assert described["workers"][0]["count"] == 1


class TestServeMistakes:
    def test_a_path_that_is_not_there(self, tmp_path: Path) -> None:
        failed(visionpool("serve", tmp_path / "nothing", "--http-port", 0), "nothing does not exist")

    def test_a_file_that_is_no_model(self, red: Path) -> None:
        failed(visionpool("serve", red, "--http-port", 0), "red.png is not a model", ".onnx")

    def test_an_empty_repository(self, tmp_path: Path) -> None:
        failed(visionpool("serve", tmp_path, "--http-port", 0), "no model in")

    @pytest.mark.parametrize(
        ("yaml", "says"),
        [
            ("familly: classification", ["unknown key 'familly'", "family, weights, labels"]),
            ("batching: {max_batch: 3}", ["'batching.max_batch'", "max_batch_size"]),
            ("family: yolov99", ["'yolov99'", "yolov8"]),
            ("runtime: {backend: magic}", ["'magic'", "openvino"]),
            ("a: [1", ["YAML"]),
        ],
    )
    def test_a_wrong_model_yaml_names_the_key_and_the_allowed_ones(
        self, tmp_path: Path, yaml: str, says: list[str]
    ) -> None:
        folder = tmp_path / "wrong"
        folder.mkdir()
        (folder / "model.yaml").write_text(yaml)
        failed(visionpool("serve", folder, "--http-port", 0), "error: wrong: ", "model.yaml", *says)

    def test_every_broken_model_of_a_repository_is_named_and_nothing_is_served(self, tmp_path: Path) -> None:
        write_model(tmp_path / "good")
        for name in ("bad", "worse"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.yaml").write_text("wrong: 1")
        done = visionpool("serve", tmp_path, "--http-port", 0)
        assert done.returncode == 1
        lines = done.stderr.strip().splitlines()  # one for each
        assert [line.removeprefix("error: ").partition(":")[0] for line in lines] == ["bad", "worse"]
        assert all("'wrong'" in line for line in lines)
        assert "is ready" not in done.stdout

    def test_two_models_of_one_name(self, tmp_path: Path) -> None:
        folders = [write_model(tmp_path / parent / "same") for parent in ("a", "b")]
        failed(visionpool("serve", *folders, "--http-port", 0), "two models are called 'same'", "name:")

    def test_a_port_in_use(self, model: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            failed(visionpool("serve", model, "--http-port", port), f"127.0.0.1:{port}", "in use", "--http-port")

    def test_a_host_that_is_not_of_this_machine(self, model: Path) -> None:
        failed(visionpool("serve", model, "--http-port", 0, "--host", "192.0.2.1"), "192.0.2.1", "--host")

    def test_a_prefix_of_urls_that_is_none(self, model: Path) -> None:
        failed(visionpool("serve", model, "--http-port", 0, "--allow-urls", "example"), "'example'", "http")

    def test_a_flag_in_the_environment_that_makes_no_sense(self, model: Path) -> None:
        done = visionpool("serve", model, environment={"VISIONPOOL_HTTP_PORT": "many"})
        assert done.returncode == 2
        assert "VISIONPOOL_HTTP_PORT" in done.stderr
        assert "Traceback" not in done.stderr
