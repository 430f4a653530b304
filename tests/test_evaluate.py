"""`visionpool evaluate` as a user types it: the demo models on pictures that the tests draw, here and on a server."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from demo_scoring import DigitSplit, digit_picture, onnx_classifier, onnx_detector, score_shapes, split_digits
from visionpool.errors import InvalidSetting, VisionpoolError
from visionpool_server.app import DEMO_MODELS
from visionpool_server.cli import app
from visionpool_server.cli.evaluate import Format
from visionpool_server.evaluation import Settings, evaluate, extra, open_model, read_dataset
from visionpool_server.evaluation.datasets import FORMATS
from visionpool_server.evaluation.run import options_for
from visionpool_server.models.loader import Defaults

from tests.evaluation_data import SCENES, distinct, write_coco, write_digits, write_yolo
from tests.real_server import COLOURS, Server, write_model
from tests.test_cli import failed, visionpool

DIGITS = 60


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo(tmp_path_factory.mktemp("yolo"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), DIGITS)[0]


def measured(*arguments: object) -> Any:
    """What `visionpool evaluate ARGUMENTS --json -` prints. In this process: a new one costs seconds on a busy machine."""
    return json.loads(printed(*arguments, "--json", "-"))


def printed(*arguments: object) -> str:
    """What `visionpool evaluate ARGUMENTS` prints. Likewise in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app(["evaluate", *map(str, arguments)], standalone_mode=False)
    return out.getvalue()


def refused(arguments: list[object], *says: str) -> None:
    """It ends with an error of ours, which `main` prints as a line and a hint."""
    with pytest.raises(VisionpoolError) as caught:
        app(["evaluate", *map(str, arguments)], standalone_mode=False)
    told = f"error: {caught.value.message}\nhint: {caught.value.hint}"
    for words in says:
        assert words in told


class TestFigures:
    def test_the_demo_detector_scores_as_another_evaluator_says(self, coco: Path) -> None:
        """onnxruntime, an own letterbox and suppression, and COCO's figures from arrays: tools/demo_scoring.py."""
        expected = score_shapes(onnx_detector(DEMO_MODELS / "shapes" / "shapes.onnx", min_score=0.001), SCENES)
        report = measured("shapes", coco, "--iou-threshold", 0.7)
        assert report["metrics"]["map50"] == pytest.approx(expected.map50, abs=0.004)
        assert report["metrics"]["map50_95"] == pytest.approx(expected.map50_95, abs=0.004)
        assert (report["pictures"], report["format"], report["classes_matched_by"]) == (len(SCENES), "coco", "name")
        assert report["options"] == {"score_threshold": 0.001, "iou_threshold": 0.7, "max_detections": 300}
        assert len(report["classes"]) == 8

    def test_yolos_labels_of_the_same_pictures_give_the_same_on_a_server(
        self, coco: Path, yolo: Path, demo_server: Server
    ) -> None:
        here = measured("shapes", coco)["metrics"]
        assert measured("shapes", yolo, "--url", demo_server.url)["metrics"] == pytest.approx(here, abs=2e-3)

    def test_names_are_not_needed_where_ids_are_the_models(self, tmp_path: Path) -> None:
        unnamed = measured("shapes", write_yolo(tmp_path / "unnamed", range(5), names=None))
        named = measured("shapes", write_yolo(tmp_path / "named", range(5)))
        assert unnamed["metrics"] == named["metrics"]
        assert (unnamed["classes_matched_by"], named["classes_matched_by"]) == ("number", "name")
        assert [entry["name"] for entry in unnamed["classes"]] == [entry["name"] for entry in named["classes"]]

    def test_a_class_of_another_name_is_left_out_and_told(self, tmp_path: Path) -> None:
        names = ("circle", "square", "triangle", "star", "pentagon", "cross", "torus", "heart")
        root = write_yolo(tmp_path, range(8), names=names)
        report = measured("shapes", root)
        assert [entry["name"] for entry in report["classes"]] == [name for name in names if name != "torus"]
        assert any("left out: torus" in note for note in report["notes"])
        assert any("without a namesake: ring" in note for note in report["notes"])
        assert "torus" in [entry["name"] for entry in measured("shapes", root, "--by-index")["classes"]]

    def test_the_demo_classifier_scores_as_another_runtime_says(self, digits: Path) -> None:
        split: DigitSplit = split_digits()
        classify = onnx_classifier(DEMO_MODELS / "digits" / "digits.onnx")
        said = [classify(digit_picture(ink)) for ink in split.test_ink[:DIGITS]]
        report = measured("digits", digits)
        assert report["metrics"]["top1"] == pytest.approx(np.mean(np.array(said) == split.test_labels[:DIGITS]))
        confusion = {(entry["truth"], entry["predicted"]): entry["count"] for entry in report["confusion"]}
        pairs = list(zip(map(str, split.test_labels[:DIGITS]), map(str, said), strict=True))
        assert confusion == {pair: pairs.count(pair) for pair in pairs}

    def test_limit_takes_the_first_pictures(self, digits: Path) -> None:
        assert measured("digits", digits, "--limit", 7)["pictures"] == 7

    def test_a_short_queue_is_waited_for(self, tmp_path: Path) -> None:
        model = write_model(
            tmp_path / "colours", {"latency_ms": 5}, batching={"max_batch_size": 1, "max_queue_size": 1}, workers=2
        )
        for index in range(12):
            distinct(tmp_path / "set" / COLOURS[2 - index % 2] / f"{index}.png", index)
        report = measured(model, tmp_path / "set")
        assert (report["pictures"], report["failed"]) == (12, {})


class TestOutput:
    def test_a_table_a_plot_and_json_in_a_file(self, coco: Path, tmp_path: Path) -> None:
        plot, file = tmp_path / "new" / "curves.png", tmp_path / "new" / "report.json"
        done = visionpool("evaluate", "shapes", coco, "--limit", 6, "--plot", plot, "--json", file, "--classes", 2)
        assert (done.returncode, done.stderr) == (0, "")
        report = json.loads(file.read_text())
        assert re.search(rf"mAP 50-95 +│ +{report['metrics']['map50_95']:.4f}", done.stdout)
        assert re.search(r"class \(2 of \d\)", done.stdout)
        assert "read as coco, classes matched by name" in done.stdout
        picture = cv2.imread(str(plot))
        assert picture is not None
        assert picture.shape[1] > 1000

    def test_what_was_not_there_is_told_below_the_table(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, range(4))
        (root / "images/02.png").unlink()
        assert "note: 1 of the 4 pictures listed are not there: 02.png" in printed("shapes", root)


class TestAgainst:
    def test_two_runtimes_agree_on_one_model(self, coco: Path) -> None:
        comparison = measured("shapes", coco, "--against-backend", "onnxruntime", "--limit", 8)
        assert comparison["first"]["where"].startswith("openvino")
        assert comparison["second"]["where"].startswith("onnxruntime")
        assert comparison["agreement"] > 0.995
        assert all(abs(change) < 0.01 for change in comparison["difference"].values())
        assert len(comparison["pictures"]) == 8

    def test_a_server_and_a_file_give_the_very_same(self, digits: Path, demo_server: Server) -> None:
        comparison = measured("digits", digits, "--against", f"{demo_server.url}#digits", "--limit", 10)
        assert comparison["agreement"] == pytest.approx(1, abs=1e-5)
        assert set(comparison["difference"].values()) == {0}

    def test_another_model_differs_and_the_worst_are_listed_and_drawn(self, tmp_path: Path) -> None:
        """The fake classifier's labels in another order: it says red where the first says green."""
        models = [
            write_model(tmp_path / name, labels=labels)
            for name, labels in (("a", COLOURS), ("b", COLOURS[1::-1] + COLOURS[2:]))
        ]
        for index, colour in enumerate(((0, 0, 250), (250, 10, 0), (200, 20, 0))):
            path = distinct(tmp_path / "pictures" / f"{index}.png", index)
            assert cv2.imwrite(str(path), np.full((60, 80, 3), colour[::-1], np.uint8))
        out, plot = tmp_path / "out", tmp_path / "plot.png"
        told = printed(
            *(models[0], tmp_path / "pictures", "--against", models[1]),
            *("--worst", 2, "--save-worst", out, "--plot", plot),
        )
        assert re.search(r"1\.png +│ +0\.\d+ │ red 0\.96 → green 0\.96", told)
        assert sorted(path.name for path in out.iterdir()) == ["01-1.jpg", "02-2.jpg"]
        assert plot.stat().st_size > 5000


class TestMistakes:
    def test_an_error_is_one_clear_line(self, yolo: Path) -> None:
        failed(visionpool("evaluate", "shapes", yolo, "--plot", "a.gif"), "--plot a.gif", ".png")

    def test_a_data_set_that_is_none(self, tmp_path: Path) -> None:
        refused(["shapes", tmp_path / "no"], "no does not exist")
        refused(["shapes", tmp_path], "no data set that is known here", "hint: expected: ")

    def test_a_data_set_of_another_task(self, digits: Path) -> None:
        refused(["shapes", digits], "shapes is a model for detection", "is for classification")

    def test_classes_that_are_none_of_the_models(self, tmp_path: Path) -> None:
        root = write_yolo(tmp_path, range(1), names=[f"thing {i}" for i in range(8)])
        refused(["shapes", root], "thing 0", "circle", "--by-index")

    def test_pictures_without_a_truth_and_nothing_to_compare_with(self, tmp_path: Path) -> None:
        distinct(tmp_path / "a.png", 0)
        refused(["shapes", tmp_path], "nothing that says what they show", "--against")

    def test_flags_that_make_no_sense(self, yolo: Path) -> None:
        refused(["shapes", yolo, "--save-worst", "out"], "--save-worst", "--against")
        refused(["shapes", yolo, "--plot", "a.gif"], "--plot a.gif", ".png")
        refused(["shapes", yolo, "--against", "http://127.0.0.1:1"], "names no model", "#NAME")
        served = ("--against", "http://127.0.0.1:1#shapes", "--against-device", "GPU")
        refused(["shapes", yolo, *served], "--against-", "a server runs this one")
        refused(["shapes", yolo, "--images", "nothing"], "--images nothing is not a folder")

    def test_models_of_two_tasks(self, tmp_path: Path) -> None:
        distinct(tmp_path / "a.png", 0)
        refused(
            ["shapes", tmp_path, "--against", "digits"],
            "shapes is a model for detection, digits for classification",
        )

    def test_a_place_that_cannot_be_written(self, digits: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for flag, name in (("--json", "file/a.json"), ("--plot", "file/a.png")):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                refused(["digits", digits, "--limit", 1, flag, tmp_path / name], flag, "file/a")
            assert "top-1" in out.getvalue(), "what was measured is shown all the same"

    def test_a_model_of_tensors(self, tmp_path: Path, yolo: Path) -> None:
        model = tmp_path / "plain"
        model.mkdir()
        (model / "model.yaml").write_text("{task: tensor, runtime: {backend: fake}}")
        refused([model, yolo], "plain takes tensors, not pictures", "task:")

    def test_a_package_that_is_missing_is_named_with_its_extra(
        self, yolo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(extra, "find_spec", lambda name: None)
        with open_model("shapes", Defaults()) as model, pytest.raises(InvalidSetting) as caught:
            evaluate(model, read_dataset(yolo))
        assert caught.value.message == "pycocotools is needed for this, and not installed"
        assert "visionpool[evaluate]" in (caught.value.hint or "")


def test_a_model_is_asked_only_for_what_it_understands() -> None:
    with open_model("digits", Defaults()) as model:
        assert options_for(model, Settings()).given() == {"score_threshold": 0.0, "top_k": 20}


def test_the_flag_knows_all_formats() -> None:
    assert get_args(Format) == tuple(FORMATS)


def test_help_shows_examples() -> None:
    told = printed("--help")
    for example in (
        "Examples",
        "visionpool evaluate yolov8n.onnx coco/ --plot curves.png",
        "--against",
        "--save-worst",
    ):
        assert example in told
