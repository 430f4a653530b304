"""`visionpool build`: what it writes serves by itself and is about as good as the original, and what it says is measured.

The embedded models are quantised here, on scenes and digits that neither training nor scoring uses.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest
import visionpool
import yaml
from demo_scoring import digit_picture, letterbox, onnx_classifier, onnx_detector, score_shapes, split_digits
from rich.console import Console
from scenes import CLASS_NAMES, Floats, Image, Ints, draw_scene
from visionpool.errors import BackendUnavailable, InvalidModel, InvalidSetting
from visionpool.results import (
    ClassifyResult,
    DetectionResult,
    EmbeddingResult,
    FaceDetectionResult,
    KeyPointDetectionResult,
    OCRResult,
    SegmentationResult,
)
from visionpool_server.app import offline
from visionpool_server.backends import LoadOptions, Source, get_backend
from visionpool_server.backends.openvino.files import core
from visionpool_server.backends.openvino.quantization import after_the_last_learned_layer, is_quantized
from visionpool_server.building import BUILDERS, Wish, agreement, build, speed
from visionpool_server.building.bundle import _with_files
from visionpool_server.building.pictures import choose
from visionpool_server.building.report import size_of
from visionpool_server.cli.build import agreement as agreement_table
from visionpool_server.cli.build import table
from visionpool_server.models.bundle import read_bundle
from visionpool_server.models.loader import Defaults

from tests import ocr_models, tiny_models
from tests.real_server import serving

DEMO = Path(__file__).parents[1] / "server" / "visionpool_server" / "demo"
SHAPES = DEMO / "shapes" / "shapes.onnx"
CALIBRATION_SEEDS = range(5000, 5022)
SCORED = range(20)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast models are here is nothing that a test could hold."""
    monkeypatch.setattr(speed, "ROUNDS", 2)
    monkeypatch.setattr(speed, "SECONDS", 0.05)


def write_scenes(folder: Path, seeds: range) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        write_picture(folder / f"{seed}.png", draw_scene(seed).image)
    return folder


def write_picture(path: Path, image: Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


COMMAND = """if True:
    import visionpool.__main__
    from visionpool_server.building import speed
    speed.ROUNDS, speed.SECONDS = 2, 0.05
    visionpool.__main__.main()
"""


def run(*arguments: object, home: Path, limit: float = 200) -> subprocess.CompletedProcess[str]:
    """`visionpool build ARGUMENTS`, as a user does who has set nothing; but how fast models are is measured for an instant."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "CI", "NNCF"))}
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "build", *map(str, arguments)],
        env={**environment, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )


@dataclass(frozen=True)
class Built:
    """What one run of the command left."""

    out: Path
    home: Path
    report: Mapping[str, Any]
    stderr: str


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), CALIBRATION_SEEDS)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Built:
    """The embedded detector in int8; its folder of pictures also has one that is none."""
    folder = tmp_path_factory.mktemp("shapes")
    home = folder / "home"
    home.mkdir()
    pictures = write_scenes(folder / "pictures", CALIBRATION_SEEDS)
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    (pictures / "labels.txt").write_text("no picture at all", encoding="utf-8")
    out = folder / "shapes-int8"
    done = run(
        "shapes", "--precision", "int8", "--calibration", pictures, "--samples", 14, "-o", out, "--json", home=home
    )
    assert done.returncode == 0, done.stderr
    return Built(out, home, json.loads(done.stdout), done.stderr)


class TestBundle:
    def test_what_was_built_serves_by_itself_and_is_about_as_good(self, shapes: Built) -> None:
        """mAP of the served INT8 model on held-out scenes, beside the original's in onnxruntime."""
        with serving(shapes.out) as server, visionpool.Client(server.url) as client:
            info = client.model("shapes-int8")
            assert (info.task, tuple(info.labels)) == ("detection", CLASS_NAMES)
            assert "openvino CPU int8" in server.log()

            def predict(image: Image) -> tuple[Floats, Floats, Ints]:
                written, data = cv2.imencode(".png", image[..., ::-1])
                assert written
                result = client.predict("shapes-int8", data.tobytes(), score_threshold=0.01, max_detections=100)
                assert isinstance(result, DetectionResult)
                boxes = np.array(result.boxes, np.float32).reshape(-1, 4)
                return boxes, np.array(result.scores, np.float32), np.array(result.label_ids, np.int64)

            after = score_shapes(predict, SCORED)
        before = score_shapes(onnx_detector(SHAPES), SCORED)
        assert before.map50 > 0.85
        assert after.map50 > before.map50 - 0.03
        assert after.map50_95 > before.map50_95 - 0.04

    def test_it_computes_what_the_written_graph_does_and_not_what_the_original_does(self, shapes: Built) -> None:
        """The graph alone, on a picture that was made ready without any of our code. A rounding may fall to either side,
        so the two differ a little; the original differs by much more."""
        scene = draw_scene(SCORED[0])
        blob = letterbox(scene.image, 320).image.transpose(2, 0, 1)[None].astype(np.float32) / 255
        compiled = ov.Core().compile_model(shapes.out / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        expected = compiled([blob])[0]
        picture = write_picture(shapes.home.parent / "scene.png", scene.image)
        served, original = (outputs(model, picture) for model in (shapes.out, SHAPES))
        assert served.shape == expected.shape
        distance = [float(np.abs(found - expected)[0, :4].mean()) for found in (served, original)]
        assert distance[0] < 0.5 * distance[1]

    def test_its_weights_are_integers_and_its_last_arithmetic_is_not(self, shapes: Built) -> None:
        model = ov.Core().read_model(shapes.out / "model.xml")
        kinds = [node.get_type_name() for node in model.get_ops()]
        assert kinds.count("FakeQuantize") > 20
        last = model.outputs[0].get_node().input_value(0).get_node()
        assert "FakeQuantize" not in [
            last.input_value(i).get_node().get_type_name() for i in range(last.get_input_size())
        ]
        integers = [
            n
            for n in model.get_ops()
            if n.get_type_name() == "Constant" and str(n.get_element_type()) == "<Type: 'int8_t'>"
        ]
        assert len(integers) > 20

    def test_the_report_says_what_lies_there(self, shapes: Built) -> None:
        report = shapes.report
        files = [path.stat().st_size for path in shapes.out.iterdir() if path.suffix in (".xml", ".bin")]
        assert report["size"] == {"before": SHAPES.stat().st_size, "after": sum(files)}
        assert (report["before"], report["after"], report["precision"]) == ("openvino f32", "openvino int8", "int8")
        rates = report["speed"]
        assert rates["lowest"] <= rates["ratio"] <= rates["highest"]
        assert rates["before"] > 0 < rates["after"]
        assert report["calibration"]["pictures"] == 14
        assert [Path(item["path"]).name for item in report["calibration"]["skipped"]] == ["broken.jpg"]
        compared = report["compared"]
        assert (compared["on"], compared["count"]) == ("held-out pictures", 8)
        assert 0.9 < compared["figures"]["boxes_matched_50"] <= 1
        assert compared["figures"]["boxes_matched_75"] <= compared["figures"]["boxes_matched_50"]

    def test_nothing_else_is_printed_and_nothing_written_under_home(self, shapes: Built) -> None:
        """NNCF logs, draws bars, and has usage statistics that write under HOME and ask the network."""
        assert shapes.stderr.strip() == ""
        assert list(shapes.home.rglob("*")) == []
        assert {path.name for path in shapes.out.iterdir()} == {"model.yaml", "model.xml", "model.bin"}
        assert [path.name for path in shapes.out.parent.iterdir() if path.name.startswith(".")] == []
        assert str(shapes.home.parent) not in (shapes.out / "model.xml").read_text(encoding="utf-8")

    def test_its_usage_statistics_stay_off(self) -> None:
        code = """if True:
            from visionpool_server.backends.openvino.quantization import _nncf
            _nncf()
            import logging
            import nncf.telemetry.wrapper as wrapper
            print(type(wrapper.telemetry).__name__, logging.getLoggerClass().__name__)
        """
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        telemetry, logger = done.stdout.split()
        assert (telemetry != "NNCFTelemetry", logger) == (True, "Logger")

    def test_all_that_was_said_of_the_original_is_carried_over(self, tmp_path: Path) -> None:
        source, folder = tiny_models.classifier(tmp_path / "source" / "net.onnx"), tmp_path / "source"
        (folder / "names.txt").write_text("one\ntwo, or so\nyes\n4\nno: 5\n", encoding="utf-8")
        (folder / "model.yaml").write_text(
            yaml.safe_dump(
                {
                    "task": "classification",
                    "labels": "names.txt",
                    "preprocess": [{"resize": [32, 32]}, {"normalize": {"mean": [0.4, 0.5, 0.6], "std": 0.2}}],
                    "postprocess": {"top_k": 2},
                    "aliases": {"probabilities": "logits"},
                    "decode": "fast",
                    "workers": 1,
                    "batching": {"max_queue_size": 7},
                }
            ),
            encoding="utf-8",
        )
        assert source.exists()
        out = tmp_path / "out"
        build(Wish(folder, out, "f16"))
        for path in folder.iterdir():
            path.unlink()
        bundle = read_bundle(out / "model.yaml")
        assert bundle.labels == ("one", "two, or so", "yes", "4", "no: 5")
        assert (bundle.family, bundle.weights, bundle.workers, bundle.decode) == (
            "classification",
            "model.xml",
            1,
            "fast",
        )
        assert (bundle.postprocess.top_k, bundle.batching.max_queue_size) == (2, 7)
        assert bundle.preprocess is not None
        assert bundle.preprocess[1] == {"normalize": {"mean": [0.4, 0.5, 0.6], "std": 0.2}}
        result = predicted(out, write_picture(tmp_path / "p.png", tiny_models.picture(40, 50)))
        assert isinstance(result, ClassifyResult)
        assert len(result.labels) == 2
        assert set(result.labels) < {"one", "two, or so", "yes", "4", "no: 5"}

    def test_an_ir_called_as_the_new_one_is_not_taken_for_it(self, tmp_path: Path) -> None:
        build(Wish(Path("digits"), tmp_path / "first", "f32"))
        build(Wish(tmp_path / "first", tmp_path / "second", "f16"))
        sizes = [(tmp_path / name / "model.bin").stat().st_size for name in ("first", "second")]
        assert sizes[1] < 0.6 * sizes[0]
        assert read_bundle(tmp_path / "second" / "model.yaml").labels == tuple("0123456789")

    def test_files_that_postprocess_names_are_copied(self, tmp_path: Path) -> None:
        (tmp_path / "words.txt").write_text("a\nb\n", encoding="utf-8")
        (tmp_path / "out").mkdir()
        said = {"words": "words.txt", "limit": 3, "mode": "greedy"}
        assert _with_files(said, tmp_path, tmp_path / "out") == said
        assert (tmp_path / "out" / "words.txt").read_text(encoding="utf-8") == "a\nb\n"


def predicted(model: Path, picture: Path) -> visionpool.Result:
    from visionpool_server.building.runner import Runner
    from visionpool_server.building.subject import opened

    with opened(model, Runner("CPU"), 10**8) as subject:
        return subject.predict(picture.read_bytes())


def outputs(model: Path, picture: Path) -> Floats:
    """What the engine makes of a picture, unfinished."""
    from visionpool_server.building.runner import Runner
    from visionpool_server.building.subject import opened

    with opened(model, Runner("CPU"), 10**8) as subject:
        found = subject.outputs(subject.prepared(picture.read_bytes(), 10**8))
        return np.asarray(next(iter(found.values())), np.float32)


class TestAccuracy:
    def test_digits_are_read_as_well_and_the_command_scores_them_itself(self, tmp_path: Path) -> None:
        """Folders of digits, a class each, scored before and after: `before` is what onnxruntime scores."""
        split = split_digits()
        for index, ink in enumerate(split.train_ink[:60]):
            write_picture(tmp_path / "calibration" / f"{index}.png", digit_picture(ink))
        pictures = [digit_picture(ink) for ink in split.test_ink[:120]]
        for index, (image, label) in enumerate(zip(pictures, split.test_labels, strict=False)):
            write_picture(tmp_path / "data" / str(label) / f"{index}.png", image)
        wish = Wish(Path("digits"), tmp_path / "out", "int8", tmp_path / "calibration", dataset=tmp_path / "data")
        report = build(wish)
        classify = onnx_classifier(DEMO / "digits" / "digits.onnx")
        expected = np.mean(
            [classify(image) == label for image, label in zip(pictures, split.test_labels, strict=False)]
        )
        assert report.scored is not None
        before, after = report.scored.figures["top1"]
        assert before == pytest.approx(expected)
        assert after > before - 0.03
        assert report.compared.on == "calibration pictures"
        assert report.compared.figures["top1_agreement"] > 0.95
        assert report.to_dict()["scored"]["figures"]["top1"] == {"before": before, "after": after}
        text = shown(report)
        assert "top-1" in text and f"{after:.4f}" in text and "openvino int8" in text

    def test_a_model_of_several_inputs_is_calibrated_on_all_of_them(self, tmp_path: Path) -> None:
        source = tiny_models.paddle_detector(tmp_path / "net" / "model.onnx", size=64)
        (source.parent / "model.yaml").write_text(
            "family: paddle_detection\npreprocess: [{resize: [64, 64]}, normalize]\n", encoding="utf-8"
        )
        for seed in range(6):
            write_picture(tmp_path / "pictures" / f"{seed}.png", tiny_models.picture(50 + seed, 80, seed))
        report = build(Wish(source.parent, tmp_path / "out", "int8", tmp_path / "pictures"))
        assert [port.get_any_name() for port in core().read_model(tmp_path / "out" / "model.xml").inputs] == [
            port.get_any_name() for port in core().read_model(source).inputs
        ]
        assert report.compared.figures["boxes_matched_50"] > 0.5

    def test_weights_of_half_the_size_answer_nearly_alike(self, tmp_path: Path, scenes: Path) -> None:
        report = build(Wish(Path("shapes"), tmp_path / "out", "f16", scenes, samples=8))
        assert (tmp_path / "out" / "model.bin").stat().st_size < 0.6 * SHAPES.stat().st_size
        assert report.compared.figures["boxes_matched_75"] > 0.97
        assert not is_quantized(core().read_model(tmp_path / "out" / "model.xml"))

    def test_without_calibration_pictures_made_up_inputs_tell_how_much_it_differs(self, tmp_path: Path) -> None:
        report = build(Wish(Path("shapes"), tmp_path / "out", "f32"))
        assert (report.compared.on, report.pictures) == ("made-up inputs", None)
        assert report.compared.figures["max_relative_error"] < 1e-4
        assert "made-up inputs" in shown(report)

    def test_a_model_of_plain_tensors_is_built_too(self, tmp_path: Path) -> None:
        source = tiny_models.two_by_two(tmp_path / "plain.onnx")
        report = build(Wish(source, tmp_path / "out", "f32"))
        assert read_bundle(tmp_path / "out" / "model.yaml").task == "tensor"
        assert report.compared.figures["max_relative_error"] < 1e-5


def shown(report: Any) -> str:
    console = Console(record=True, width=100, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(table(report), agreement_table(report))
    return console.export_text()


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "few", range(9000, 9003))


class TestRefusals:
    def test_int8_is_no_flag_that_makes_a_model_int8(self) -> None:
        with pytest.raises(
            InvalidModel, match=r"shapes.onnx is not quantised.*visionpool build shapes.onnx --precision int8"
        ):
            get_backend("openvino").load(Source(SHAPES), LoadOptions(precision="int8"))

    @pytest.mark.parametrize("backend", ["onnxruntime", "remote"])
    def test_other_backends_refuse_it(self, backend: str) -> None:
        source = Source(url="grpc://127.0.0.1:1", model="m") if backend == "remote" else Source(SHAPES)
        with pytest.raises(InvalidModel, match="int8"):
            get_backend(backend).load(source, LoadOptions(precision="int8"))

    def test_what_is_quantised_is_not_quantised_again(self, shapes: Built, few: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidModel, match=r"model.xml is quantised already"):
            build(Wish(shapes.out, tmp_path / "out", "int8", few))
        assert not (tmp_path / "out").exists()

    def test_it_needs_pictures(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="int8 is calibrated on pictures"):
            build(Wish(SHAPES, tmp_path / "out", "int8"))

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({}, "no picture in it"),
            ({"a.txt": b"text"}, "no picture in it"),
            ({"a.jpg": b"", "b.png": b"\x89PNG\r\n\x1a\n"}, "none of its 2 pictures can be read"),
        ],
    )
    def test_a_folder_without_a_picture_is_named(self, files: dict[str, bytes], said: str, tmp_path: Path) -> None:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        with pytest.raises(InvalidSetting, match=f"--calibration {folder}: {said}"):
            build(Wish(Path("shapes"), tmp_path / "out", "int8", folder))

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="nowhere is not a folder"):
            build(Wish(Path("shapes"), tmp_path / "out", "int8", tmp_path / "nowhere"))

    def test_a_folder_that_holds_something_is_not_overwritten(self, few: Path) -> None:
        with pytest.raises(InvalidSetting, match="is there already"):
            build(Wish(Path("shapes"), few, "f16"))

    def test_a_model_of_plain_tensors_cannot_be_calibrated_on_pictures(self, few: Path, tmp_path: Path) -> None:
        source = tiny_models.two_by_two(tmp_path / "plain.onnx")
        with pytest.raises(InvalidModel, match="nothing says how pictures become the tensors of plain"):
            build(Wish(source, tmp_path / "out", "int8", few))

    def test_a_pipeline_is_built_step_by_step(self, tmp_path: Path) -> None:
        folder = ocr_models.pipeline(tmp_path / "ocr")
        with pytest.raises(InvalidModel, match="ocr is a pipeline of several models") as caught:
            build(Wish(folder, tmp_path / "out", "f16"))
        assert "build its steps one by one" in (caught.value.hint or "")
        for step in ("tiny_det", "tiny_rec"):
            family = {"tiny_det": "ocr_detection", "tiny_rec": "ocr_recognition"}[step]
            said = {"task": "ocr", "family": family} | ({"labels": list("ABCDEF")} if step == "tiny_rec" else {})
            (folder / step / "model.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
        for seed in range(4):
            page = ocr_models.page(ocr_models.written(seed, 3))
            write_picture(tmp_path / "pages" / f"{seed}.png", page)
        found = build(Wish(folder / "tiny_det", tmp_path / "det8", "int8", tmp_path / "pages")).compared
        assert found.figures["boxes_matched_75"] == 1 and found.figures["boxes"] == 12
        read = build(Wish(folder / "tiny_rec", tmp_path / "rec32", "f32", tmp_path / "pages")).compared
        assert (read.count, read.figures) == (4, {"same_text": 1.0, "text_similarity": 1.0})
        (tmp_path / "built").mkdir()
        (tmp_path / "built" / "model.yaml").write_text(
            "{task: ocr, steps: {detect: ../det8, read: ../rec32}, postprocess: {unclip_ratio: 0.0}}", encoding="utf-8"
        )
        with offline([tmp_path / "built"], Defaults(), max_pixels=10**7) as service, asyncio.Runner() as runner:
            written = ocr_models.png(ocr_models.page(["ABBA", "FEED"]))
            result = runner.run(service.predict(service.models.get("built"), written)).result
        assert isinstance(result, OCRResult)
        assert result.text == ("ABBA", "FEED")

    def test_a_model_that_runs_elsewhere_is_built_there(self, tmp_path: Path) -> None:
        (tmp_path / "model.yaml").write_text("runtime: {backend: remote, url: 'grpc://127.0.0.1:1'}", encoding="utf-8")
        with pytest.raises(InvalidModel, match=r"has no weights here: runtime.backend is remote"):
            build(Wish(tmp_path, tmp_path / "out", "f16"))

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("", encoding="utf-8")
        with pytest.raises(InvalidSetting, match=rf"-o {tmp_path}/file/out cannot be written: "):
            build(Wish(Path("shapes"), tmp_path / "file" / "out", "f32"))

    def test_a_wrong_data_set_is_found_before_anything_is_built(self, few: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="does not exist"):
            build(Wish(Path("shapes"), tmp_path / "out", "int8", few, dataset=tmp_path / "nowhere"))
        assert not (tmp_path / "out").exists()

    def test_a_build_that_fails_leaves_nothing(
        self, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(BackendUnavailable, match=r"'nncf' is not installed.*visionpool\[server,openvino,build\]"):
            build(Wish(Path("shapes"), tmp_path / "there" / "out", "int8", few))
        assert list((tmp_path / "there").iterdir()) == []

    def test_the_command_says_it_in_one_line(self, tmp_path: Path) -> None:
        done = run("shapes", "-o", tmp_path / "out", home=tmp_path)
        assert done.returncode == 1
        assert done.stderr.strip().startswith("error: int8 is calibrated on pictures\nhint: say --calibration")


class TestPictures:
    def test_they_are_spread_evenly_and_the_rest_is_held_out(self, tmp_path: Path) -> None:
        for index in range(20):
            (tmp_path / str(index // 5)).mkdir(exist_ok=True)
            (tmp_path / str(index // 5) / f"{index:02}.jpg").write_bytes(b"x")
        chosen = choose(tmp_path, 4, lambda _: None, lambda *_: None)
        assert [path.name for path in chosen.calibration] == ["00.jpg", "05.jpg", "10.jpg", "15.jpg"]
        assert len(chosen.measured) == 16
        assert chosen.held_out
        assert not set(chosen.measured) & set(chosen.calibration)

    def test_fewer_than_wanted_are_fine_and_then_measured_too(self, tmp_path: Path) -> None:
        for index in range(3):
            (tmp_path / f"{index}.png").write_bytes(b"x")
        chosen = choose(tmp_path, 300, lambda _: None, lambda *_: None)
        assert len(chosen.calibration) == 3
        assert (chosen.measured, chosen.held_out) == (chosen.calibration, False)


class TestFigures:
    def test_boxes_are_partners_by_class_and_overlap(self) -> None:
        one = DetectionResult(((0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 60, 60)), (0.9, 0.8, 0.7), (0, 1, 2))
        other = DetectionResult(((0, 0, 10, 6), (20, 20, 30, 30), (50, 50, 60, 60)), (0.8, 0.8, 0.7), (0, 1, 0))
        figures = agreement.of_results([(one, other)])
        assert figures == pytest.approx(
            {"boxes_matched_50": 4 / 6, "boxes_matched_75": 2 / 6, "mean_score_difference": 0.05, "boxes": 3}
        )

    def test_one_box_is_nobody_elses_partner(self) -> None:
        box = (0.0, 0.0, 10.0, 10.0)
        figures = agreement.of_results(
            [(DetectionResult((box, box), (0.9, 0.8), (0, 0)), DetectionResult((box,), (0.9,), (0,)))]
        )
        assert figures is not None
        assert figures["boxes_matched_50"] == pytest.approx(2 / 3)

    def test_nothing_found_by_either_is_agreement(self) -> None:
        figures = agreement.of_results([(DetectionResult(), DetectionResult())])
        assert figures is not None
        assert figures["boxes_matched_50"] == 1

    def test_classes_and_pixels(self) -> None:
        pairs = [
            (ClassifyResult((1, 2), (0.6, 0.4)), ClassifyResult((1, 2), (0.5, 0.5))),
            (ClassifyResult((1, 2), (0.6, 0.4)), ClassifyResult((2, 1), (0.6, 0.4))),
        ]
        assert agreement.of_results(pairs) == pytest.approx({"top1_agreement": 0.5, "mean_score_difference": 0.1})
        maps = [(SegmentationResult((0, 1, 1, 2), shape=(2, 2)), SegmentationResult((0, 1, 2, 2), shape=(2, 2)))]
        assert agreement.of_results(maps) == {"pixel_agreement": 0.75}

    def test_points_of_partners_are_measured_in_sizes_of_their_box(self) -> None:
        box, points = (0.0, 0.0, 10.0, 40.0), ((1.0, 1.0), (5.0, 9.0))
        one = KeyPointDetectionResult(points, (), 2, (box,), (0.9,))
        other = KeyPointDetectionResult(((1.0, 5.0), (5.0, 9.0)), (), 2, (box,), (0.7,))
        figures = agreement.of_results([(one, other)])
        assert figures == pytest.approx(
            {
                "boxes_matched_50": 1,
                "boxes_matched_75": 1,
                "mean_score_difference": 0.2,
                "boxes": 1,
                "mean_point_distance": 4 / 2 / 20,
            }
        )
        face = FaceDetectionResult((box,), (0.9,), points, 2)
        found = agreement.of_results([(face, face), (FaceDetectionResult(), face)])
        assert found is not None
        assert found["mean_point_distance"] == 0
        assert found["boxes_matched_50"] == pytest.approx(2 / 3)
        without = agreement.of_results([(FaceDetectionResult((box,), (0.9,)),) * 2])
        assert without is not None and "mean_point_distance" not in without

    def test_texts_lines_and_embeddings(self) -> None:
        pairs = [(OCRResult(text=("ab", "c")), OCRResult(text=("ab", "c"))), (OCRResult(text=("ab",)), OCRResult())]
        assert agreement.of_results(pairs) == {"same_text": 0.5, "text_similarity": 0.5}
        quad = (0, 0, 20, 0, 20, 10, 0, 10)
        lines = agreement.of_results([(OCRResult((quad,), rec_scores=(0.9,)), OCRResult((quad,), (), (0.8,)))])
        assert lines is not None
        assert lines["boxes_matched_75"] == 1
        assert lines["mean_score_difference"] == pytest.approx(0.1)
        turned = agreement.of_results([(EmbeddingResult((2.0, 0.0)), EmbeddingResult((0.6, 0.8)))])
        assert turned == pytest.approx({"mean_cosine": 0.6})

    def test_tensors(self) -> None:
        before, after = {"a": np.array([1.0, -4.0])}, {"a": np.array([1.5, -4.0])}
        assert agreement.of_tensors([(before, after)]) == pytest.approx(
            {"max_relative_error": 0.125, "mean_relative_error": 0.1}
        )
        assert agreement.of_tensors([(before, {"a": np.zeros(3)})])["max_relative_error"] == 1

    def test_the_ratio_is_that_of_each_round(self) -> None:
        """The machine is half as fast in the second round: the ratio is not hurt."""
        found = speed.summary([(10, 20), (5, 10), (10, 30)])
        assert (found.before, found.after, found.ratio, found.lowest, found.highest) == (10, 20, 2, 2, 3)


class TestGraph:
    def test_what_follows_the_last_layers_is_named_and_no_layer_is(self) -> None:
        model = core().read_model(SHAPES)
        names = set(after_the_last_learned_layer(model))
        kinds = {node.get_type_name() for node in model.get_ops() if node.get_friendly_name() in names}
        assert {"Concat", "Sigmoid"} <= kinds
        layers = [
            n for n in model.get_ops() if n.get_type_name() == "Convolution" and np.prod(n.input(1).get_shape()) >= 256
        ]
        assert len(layers) > 10
        assert not names & {node.get_friendly_name() for node in layers}

    def test_a_graph_without_layers_has_none_after_the_last(self, tmp_path: Path) -> None:
        assert after_the_last_learned_layer(core().read_model(tiny_models.two_by_two(tmp_path / "m.onnx"))) == []

    def test_every_builder_is_there(self) -> None:
        from importlib import import_module

        for module in BUILDERS.values():
            assert callable(import_module(module).write)

    def test_a_model_is_as_large_as_all_its_files(self, tmp_path: Path) -> None:
        for name in ("a.xml", "a.bin", "b.bin"):
            (tmp_path / name).write_bytes(b"123")
        assert size_of(tmp_path / "a.xml") == 6
        assert size_of(tmp_path) == 9


# -- real weights ---------------------------------------------------------------------------------------------


def test_squeezenet_reads_imagenet_as_well(testdata: Path, tmp_path: Path) -> None:
    """Top-1 of the original is .66, by another evaluator (testdata/README.md)."""
    photos = testdata / "images" / "coco64" / "images"
    dataset = testdata / "images" / "imagenet100"
    report = build(
        Wish(testdata / "models" / "squeezenet", tmp_path / "out", "int8", photos, samples=48, dataset=dataset)
    )
    assert report.scored is not None
    before, after = report.scored.figures["top1"]
    assert before == pytest.approx(0.66, abs=0.01)
    assert after >= before - 0.04
    assert report.size.after < 0.4 * report.size.before


def test_yolov8n_finds_about_as_much(testdata: Path, tmp_path: Path) -> None:
    """Calibrated on pictures of another data set than it is scored on, of which a quarter is taken."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((testdata / "images" / "imagenet100").glob("*.JPEG"))[::6]:
        (photos / path.name).symlink_to(path)
    dataset = tmp_path / "coco16"
    for kind in ("images", "labels"):
        (dataset / kind).mkdir(parents=True)
        for path in sorted((testdata / "images" / "coco64" / kind).iterdir())[::4]:
            (dataset / kind / path.name).symlink_to(path)
    report = build(Wish(testdata / "models" / "yolov8n", tmp_path / "out", "int8", photos, samples=12, dataset=dataset))
    assert report.scored is not None
    before, after = report.scored.figures["map50_95"]
    assert before > 0.3
    assert after >= before - 0.05
    assert report.compared.figures["boxes_matched_50"] > 0.6


def test_an_int8_export_of_ultralytics_counts_as_quantised(testdata: Path, tmp_path: Path) -> None:
    folder = testdata / "models" / "yolov8n_int8_ir"
    with pytest.raises(InvalidModel, match=r"yolov8n\.xml is quantised already"):
        build(Wish(folder, tmp_path / "out", "int8", testdata / "images" / "coco64"))
    engine = get_backend("openvino").load(Source(folder / "yolov8n.xml"), LoadOptions(precision="int8"))
    assert engine.describe().precision == "int8"


@pytest.mark.parametrize(
    "name",
    ["yolov5n", "yolov8n", "picodet_s_320", "squeezenet", "squeezenet_paddle", "squeezenet_tf", "humanseg", "mnist"],
)
def test_originals_in_floating_point_are_not_taken_for_quantised(testdata: Path, name: str) -> None:
    files = [path for path in (testdata / "models" / name).iterdir() if path.suffix in (".onnx", ".pdmodel", ".pb")]
    assert not is_quantized(core().read_model(files[0]))
