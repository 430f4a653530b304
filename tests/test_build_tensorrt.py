"""`visionpool build --backend tensorrt`: the ONNX file that it writes, the engine beside it, and what it says without a GPU.

There is none where these run: engines are built by TensorRT-RTX, which needs none, and answers compared on onnxruntime.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto
from visionpool.errors import BackendUnavailable, InvalidModel, InvalidSetting
from visionpool.results import ClassifyResult, DetectionResult
from visionpool_server.backends import choice
from visionpool_server.backends.tensorrt.plans import read_plan
from visionpool_server.building import Wish, build
from visionpool_server.building import tensorrt as builder
from visionpool_server.building.runner import Runner
from visionpool_server.building.subject import opened
from visionpool_server.models.bundle import read_bundle

from tests import tiny_models
from tests.test_build import Built, run, scenes, shown, write_picture

__all__ = ["scenes"]  # a fixture

WITHOUT_GPU = pytest.mark.skipif(
    not builder.runner(None).stands_in, reason="this machine has an NVIDIA GPU: tests/gpu does this"
)
pytestmark = WITHOUT_GPU
HELD_OUT = 20


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def results(model: Path, pictures: list[Path]) -> list[Any]:
    """Of a bundle for TensorRT, when its model.yaml is made to say onnxruntime."""
    said = yaml.safe_load((model / "model.yaml").read_text(encoding="utf-8")) if (model / "model.yaml").exists() else {}
    runtime = {key: value for key, value in said.get("runtime", {}).items() if key == "shapes"}
    copy = model.parent / f"{model.name}-onnxruntime"
    copy.mkdir()
    for path in model.iterdir():
        if path.suffix != ".plan":
            (copy / path.name).write_bytes(path.read_bytes())
    said["runtime"] = {**runtime, "backend": "onnxruntime"}
    (copy / "model.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    with opened(copy, Runner("CPU"), 10**8) as subject:
        return [subject.predict(path.read_bytes()) for path in pictures]


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Built:
    """The embedded detector, by the command."""
    folder = tmp_path_factory.mktemp("int8")
    home, out = folder / "home", folder / "shapes-int8"
    home.mkdir()
    done = run(
        *("shapes", "--backend", "tensorrt", "--precision", "int8", "--calibration", scenes, "--samples", 14),
        *("-o", out, "--json"),
        home=home,
    )
    assert done.returncode == 0, done.stderr
    return Built(out, home, json.loads(done.stdout), done.stderr)


class TestInt8:
    def test_the_bundle_is_onnx_that_says_int8_itself(self, int8: Built) -> None:
        bundle = read_bundle(int8.out / "model.yaml")
        assert (bundle.weights, bundle.runtime.backend, bundle.runtime.precision) == ("model.onnx", "tensorrt", "int8")
        assert bundle.runtime.device is None
        assert kinds(int8.out / "model.onnx").count("QuantizeLinear") > 10
        stored = {tensor.data_type for tensor in onnx.load(int8.out / "model.onnx").graph.initializer}
        assert TensorProto.INT8 in stored
        assert (int8.out / "model.onnx").stat().st_size < 0.5 * int8.report["size"]["before"]

    def test_it_finds_nearly_what_the_original_does(self, int8: Built, scenes: Path) -> None:
        compared = int8.report["compared"]
        assert (compared["on"], compared["count"]) == ("held-out pictures", 8)
        assert compared["figures"]["boxes_matched_50"] > 0.9
        pictures = sorted(scenes.iterdir())[:4]
        with opened(Path("shapes"), Runner("CPU", "onnxruntime"), 10**8) as original:
            before = [original.predict(path.read_bytes()) for path in pictures]
        for one, other in zip(before, results(int8.out, pictures), strict=True):
            assert isinstance(one, DetectionResult)
            best = [box for box, score in zip(one.boxes, one.scores, strict=True) if score > 0.6]
            assert best
            for box in best:
                assert min(np.abs(np.subtract(box, found)).max() for found in other.boxes) < 10

    def test_it_does_not_claim_what_was_not_measured(self, int8: Built) -> None:
        report = int8.report
        assert report["speed"] is None
        assert (report["before"], report["after"]) == ("onnxruntime original", "onnxruntime int8")
        assert any("speed was not measured: no NVIDIA GPU was used" in note for note in report["notes"])
        assert report["calibration"]["pictures"] == 14

    def test_nothing_else_is_printed_or_left_there(self, int8: Built) -> None:
        assert int8.stderr.strip() == ""
        assert {path.suffix for path in int8.out.iterdir()} <= {".yaml", ".onnx", ".plan"}

    def test_an_engine_lies_beside_it_where_serving_looks(self, int8: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        """The name is asked of the loader itself, with a GPU made up: of TensorRT-RTX's engines it does not depend on it."""
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        from visionpool_server.backends.tensorrt import loading
        from visionpool_server.backends.tensorrt.plan_cache import PlanCache
        from visionpool_server.building.runner import Opener
        from visionpool_server.cuda.driver import Properties

        (path,) = int8.out.glob("*.plan")
        assert len(read_plan(path).plan) > 10_000
        asked: list[str] = []

        class Stop(Exception):
            pass

        def find(self: PlanCache, name: str) -> None:
            asked.append(name)
            raise Stop

        monkeypatch.setattr(loading, "properties_of", lambda _: Properties("made up", (8, 9), 1, 1, "0"))
        monkeypatch.setattr(PlanCache, "find", find)
        monkeypatch.setattr("visionpool_server.backends.tensorrt.backend.driver_of", lambda *_: None)
        monkeypatch.setattr(Opener, "__call__", lambda self, name: loading_backend())
        with pytest.raises(Stop), opened(int8.out, Runner("cuda:0", "tensorrt"), 10**8):
            pass
        assert asked == [path.name]


def loading_backend() -> Any:
    from visionpool_server.backends import get_backend

    return get_backend("tensorrt")


class TestHalf:
    def test_inputs_and_outputs_stay_and_weights_are_half(self, tmp_path: Path, scenes: Path) -> None:
        report = build(Wish(Path("shapes"), tmp_path / "out", "f16", scenes, samples=8, backend="tensorrt"))
        assert report.speed is None
        assert report.size.after < 0.6 * report.size.before
        assert report.compared.figures["boxes_matched_75"] > 0.97
        model = onnx.load(tmp_path / "out" / "model.onnx")
        tensors = (*model.graph.input, *model.graph.output)
        assert {value.type.tensor_type.elem_type for value in tensors} == {TensorProto.FLOAT}
        text = shown(report)
        assert "inferences/s" not in text and "onnxruntime f16" in text

    def test_what_is_said_for_tensorrt_is_kept_and_for_others_is_not(self, tmp_path: Path) -> None:
        pictures = tmp_path / "p"
        for seed in range(3):
            write_picture(pictures / f"{seed}.png", tiny_models.picture(50, 60, seed))
        runtimes: list[dict[str, Any]] = [
            {"backend": "tensorrt", "device": "cuda:1", "options": {"builder_level": 1}, "precision": "f32"},
            {"device": "CPU", "options": {"NUM_STREAMS": "1"}, "cpu_operators": ["Softmax"], "max_shapes": 3},
        ]
        for index, runtime in enumerate(runtimes):
            source = tiny_models.classifier(tmp_path / f"net{index}" / "net.onnx")
            said = {"task": "classification", "preprocess": [{"resize": [32, 32]}, "normalize"], "runtime": runtime}
            (source.parent / "model.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
            out = tmp_path / f"out{index}"
            report = build(Wish(source.parent, out, "f16", pictures, backend="tensorrt"))
            assert report.compared.figures["top1_agreement"] == 1
            written = yaml.safe_load((out / "model.yaml").read_text(encoding="utf-8"))["runtime"]
            kept = {"device": "cuda:1", "options": {"builder_level": 1}} if index == 0 else {}
            assert written == {"backend": "tensorrt", **kept, "precision": "f16"}
            (answer,) = results(out, [pictures / "0.png"])
            assert isinstance(answer, ClassifyResult)

    def test_plugins_come_along(self, tmp_path: Path) -> None:
        source = tiny_models.two_by_two(tmp_path / "net" / "net.onnx")
        (source.parent / "layers").mkdir()
        (source.parent / "layers" / "mine.py").write_text("def register(trt): ...", encoding="utf-8")
        runtime = {"backend": "tensorrt", "plugins": ["layers/mine.py"]}
        (source.parent / "model.yaml").write_text(yaml.safe_dump({"runtime": runtime}), encoding="utf-8")
        build(Wish(source.parent, tmp_path / "out", "f32", backend="tensorrt"))
        assert read_bundle(tmp_path / "out" / "model.yaml").runtime.plugins == ("mine.py",)
        assert (tmp_path / "out" / "mine.py").read_text(encoding="utf-8") == "def register(trt): ..."

    def test_f32_is_the_file_itself(self, tmp_path: Path) -> None:
        source = tiny_models.two_by_two(tmp_path / "plain.onnx")
        report = build(Wish(source, tmp_path / "out", "f32", backend="tensorrt"))
        assert (tmp_path / "out" / "model.onnx").read_bytes() == source.read_bytes()
        assert report.compared.figures["max_relative_error"] == 0

    def test_without_tensorrt_the_bundle_is_complete_and_a_note_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in choice.TENSORRT:
            monkeypatch.setitem(sys.modules, name, None)
        report = build(Wish(Path("digits"), tmp_path / "out", "f16", backend="tensorrt"))
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.yaml"}
        assert any("no engine was built here" in note and "pip install" in note for note in report.notes)


class TestRefusals:
    def test_a_gpu_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(BackendUnavailable):
            build(Wish(Path("digits"), tmp_path / "out", "f16", backend="tensorrt", device="cuda:0"))

    def test_a_precision_that_it_is_not_built_in(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="tensorrt is not built in bf16") as caught:
            build(Wish(Path("digits"), tmp_path / "out", "bf16", backend="tensorrt"))
        assert "int8, f16, f32" in (caught.value.hint or "")

    def test_what_is_built_already(self, int8: Built, tmp_path: Path, scenes: Path) -> None:
        with pytest.raises(InvalidModel, match=r"model\.onnx is quantised already"):
            build(Wish(int8.out, tmp_path / "out", "int8", scenes, backend="tensorrt"))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("model.xml", r"TensorRT is built from ONNX files, and this is model\.xml"),
            ("model.pdmodel", r"TensorRT is built from ONNX files, and this is model\.pdmodel"),
            ("model.plan", r"model\.plan is a TensorRT engine, built already"),
        ],
    )
    def test_a_file_that_is_no_onnx_is_not_even_loaded(self, name: str, says: str, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / name).write_bytes(b"anything")
        for other in ("model.bin", "model.pdiparams"):
            (tmp_path / "model" / other).write_bytes(b"")
        with pytest.raises(InvalidModel, match=says) as caught:
            build(Wish(tmp_path / "model", tmp_path / "out", "f16", backend="tensorrt"))
        assert "ONNX" in (caught.value.hint or "") or ".onnx" in (caught.value.hint or "")

    @pytest.mark.parametrize("device", ["cuda", "CUDA:0", "cuda:0"])
    def test_however_a_gpu_is_written_none_stands_in_for_it(self, device: str, tmp_path: Path) -> None:
        with pytest.raises(BackendUnavailable, match="driver"):
            build(Wish(Path("digits"), tmp_path / "out", "f16", backend="tensorrt", device=device))

    @pytest.mark.parametrize("device", ["GPU", "NPU", "HETERO:GPU,CPU"])
    def test_a_device_of_another_runtime(self, device: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match=f"TensorRT runs on NVIDIA GPUs, not on {device}"):
            build(Wish(Path("digits"), tmp_path / "out", "f16", backend="tensorrt", device=device))
        with pytest.raises(InvalidSetting, match="OpenVINO does not run on cuda:0") as caught:
            build(Wish(Path("digits"), tmp_path / "out", "f16", device="cuda"))
        assert caught.value.hint == "say --backend tensorrt"

    @pytest.mark.parametrize("error", [InvalidModel("TensorRT does not take it"), KeyboardInterrupt()])
    def test_what_was_built_and_cannot_be_loaded_leaves_nothing(
        self, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: object) -> None:
            assert (tmp_path / "out" / "model.onnx").exists()
            raise error

        monkeypatch.setattr(builder, "finish", failing)
        with pytest.raises(type(error)):
            build(Wish(Path("digits"), tmp_path / "out", "f32", backend="tensorrt"))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("precision", "missing"), [("f16", "onnx"), ("int8", "onnxruntime.quantization")])
    def test_a_package_that_is_missing(
        self, precision: Any, missing: str, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.startswith("visionpool_server.backends.onnx_precision")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr("visionpool_server.backends.onnx_precision", raising=False)
        monkeypatch.setitem(sys.modules, missing, None)
        if missing == "onnx":
            monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(BackendUnavailable, match="which needs the Python package") as caught:
            builder._check_installed(precision)
        assert "pip install 'visionpool[server,build" in (caught.value.hint or "")


# -- real weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["f16", "int8"])
def test_squeezenet_reads_imagenet_as_well(precision: Any, testdata: Path, tmp_path: Path) -> None:
    """Top-1 of the original is .66, by another evaluator (testdata/README.md)."""
    images, out = testdata / "images", tmp_path / "out"
    wish = Wish(
        *(testdata / "models" / "squeezenet", out, precision, images / "coco64" / "images", 24),
        dataset=images / "imagenet100",
        backend="tensorrt",
    )
    report = build(wish)
    assert report.scored is not None
    before, after = report.scored.figures["top1"]
    assert before == pytest.approx(0.66, abs=0.01)
    assert after >= before - (0.01 if precision == "f16" else 0.05)
    if any("without a GPU" in note for note in report.notes):
        (path,) = out.glob("*.plan")
        assert len(read_plan(path).plan) > 10**6


def test_yolov5n_finds_the_same_in_int8(testdata: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((testdata / "images" / "coco64" / "images").iterdir())[:20]:
        (photos / path.name).symlink_to(path)
    report = build(
        Wish(testdata / "models" / "yolov5n", tmp_path / "out", "int8", photos, samples=12, backend="tensorrt")
    )
    assert report.compared.figures["boxes_matched_50"] > 0.75
    assert report.size.after < 0.35 * report.size.before
