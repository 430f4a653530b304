"""Which runtime each device gets, what workers of several devices share, and what is said where they cannot.

There is no NVIDIA GPU here: backends are opened that note what they are asked to load, up to what is said without a driver,
which is the real command's.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from visionpool.errors import BackendUnavailable, InvalidModel, SetupError
from visionpool_server import cpu
from visionpool_server.api import devices as devices_api
from visionpool_server.api.answers import describe
from visionpool_server.api.devices import DevicesApi
from visionpool_server.api.schemas import DeviceList
from visionpool_server.backends import LoadOptions, Placement, Signature, Source, TensorSpec, choice, get_backend
from visionpool_server.backends.fake import FakeEngine
from visionpool_server.imaging.geometry import Geometry
from visionpool_server.imaging.unprepared import Unprepared
from visionpool_server.inspection import gpus
from visionpool_server.inspection.gpus import notes_on_gpus
from visionpool_server.inspection.inspector import inspect_model
from visionpool_server.models import cores
from visionpool_server.models.files import find_models
from visionpool_server.models.loader import Defaults, Model, load_model
from visionpool_server.models.repository import Repository

from tests import ocr_models, tiny_models
from tests.conftest import Serve
from tests.fake_cuda import FakeDriver
from tests.real_server import Server, picture
from tests.test_cli import RED, failed, visionpool
from tests.test_monitor import GIB, FakeNvml, nvml

__all__ = ["nvml"]  # a fixture: a machine with two GPUs, for nvidia-ml


class NotedEngine(FakeEngine):
    def __init__(self, backend: str, options: LoadOptions, noted: list[str]) -> None:
        super().__init__(options)
        self._placed = Placement(backend, options.device, options.precision or "f32")
        self._noted = noted

    def describe(self) -> Placement:
        return self._placed

    def close(self) -> None:
        self._noted.append(f"closed {self._placed.device}")


class Noted:
    """Backends that read as ONNX Runtime does. `loads`: backend and options of each engine, in order; `renames`: what tensors
    are called by one of them; `fails`: the device that cannot be loaded."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, LoadOptions]] = []
        self.closed: list[str] = []
        self.read_by: list[str] = []
        self.renames: dict[str, str] = {}
        self.fails: str | None = None
        self.signature: Signature | None = None

    def __call__(self, name: str) -> Any:
        return SimpleNamespace(
            read=lambda source: self._read(name, source), load=lambda _, asked: self._load(name, asked)
        )

    def _read(self, name: str, source: Source) -> Signature:
        self.read_by.append(name)
        read = self.signature or get_backend("onnxruntime").read(source)
        if name not in self.renames:
            return read
        return Signature(
            tuple(TensorSpec(self.renames[name], one.shape, one.dtype) for one in read.inputs), read.outputs
        )

    def _load(self, name: str, options: LoadOptions) -> NotedEngine:
        if options.device == self.fails:
            raise InvalidModel(f"{options.device} has no room")
        self.loads.append((name, options))
        return NotedEngine(name, options, self.closed)

    @property
    def placed(self) -> list[tuple[str, str]]:
        return [(name, options.device) for name, options in self.loads]


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the loader see these packages alone; `cuda`: whether ONNX Runtime has its provider."""

    def only(*packages: str, cuda: bool = False) -> None:
        providers = [*(["CUDAExecutionProvider"] if cuda else []), "CPUExecutionProvider"]
        monkeypatch.setattr(choice, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(
            choice, "import_module", lambda _: SimpleNamespace(get_available_providers=lambda: providers)
        )

    only("tensorrt", "openvino", "onnxruntime")
    return only


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return tiny_models.yolov8(tmp_path / "m" / "m.onnx")


def load(path: Path, noted: Noted, config: Mapping[str, Any] | None = None, **defaults: Any) -> Model:
    folder = path if path.is_dir() else path.parent
    if config is not None:
        (folder / "model.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    (files,) = find_models(path)
    return load_model(files, Defaults(**defaults), noted)


def refused(path: Path, noted: Noted, config: Mapping[str, Any] | None = None, **defaults: Any) -> str:
    with pytest.raises(SetupError) as caught:
        load(path, noted, config, **defaults)
    assert caught.value.hint
    return f"{caught.value.message} ({caught.value.hint})"


# A backend for each device


@pytest.mark.parametrize(
    ("packages", "cuda", "device", "backend"),
    [
        (["tensorrt", "openvino", "onnxruntime"], True, "cuda:0", "tensorrt"),
        (["tensorrt_rtx", "openvino"], False, "cuda:1", "tensorrt"),
        (["openvino", "onnxruntime"], True, "cuda:0", "onnxruntime"),
        (["tensorrt", "openvino", "onnxruntime"], True, "CPU", "openvino"),
        (["tensorrt", "openvino", "onnxruntime"], True, "HETERO:GPU,CPU", "openvino"),
        (["openvino"], False, "NPU", "openvino"),
        (["onnxruntime"], True, "CPU", "onnxruntime"),
        ([], False, "CPU", "openvino"),  # which then says what to install
    ],
)
def test_the_device_decides_where_nobody_names_a_backend(
    installed: Callable[..., None], packages: list[str], cuda: bool, device: str, backend: str
) -> None:
    installed(*packages, cuda=cuda)
    assert choice.backend_for(device) == backend


def test_a_gpu_that_nothing_installed_runs_says_what_to_install(installed: Callable[..., None]) -> None:
    for packages in (["openvino"], ["openvino", "onnxruntime"]):
        installed(*packages)
        with pytest.raises(BackendUnavailable, match=r"cuda:1 needs TensorRT, or ONNX Runtime with its CUDA") as caught:
            choice.backend_for("cuda:1")
        assert "visionpool[server,tensorrt]" in (caught.value.hint or "")
        assert "visionpool[server,onnxruntime-cuda]" in (caught.value.hint or "")


def test_the_packages_are_those_that_the_backend_looks_for() -> None:
    from visionpool_server.backends.tensorrt.api import LIBRARIES

    assert choice.TENSORRT == LIBRARIES


@pytest.mark.parametrize(
    ("config", "defaults", "placed"),
    [
        ({}, {}, [("openvino", "CPU")]),
        ({}, {"device": "cuda:1"}, [("tensorrt", "cuda:1")]),
        ({}, {"device": "CUDA"}, [("tensorrt", "cuda:0")]),
        ({}, {"device": "cuda"}, [("tensorrt", "cuda:0")]),
        ({}, {"backend": "tensorrt"}, [("tensorrt", "cuda:0")]),
        ({}, {"device": " Cuda: 1 ", "backend": "onnxruntime"}, [("onnxruntime", "cuda:1")]),
        ({"runtime": {"device": "cuda:0"}}, {"device": "CPU"}, [("tensorrt", "cuda:0")]),
        ({"runtime": {"backend": "tensorrt"}}, {}, [("tensorrt", "cuda:0")]),
        ({"runtime": {"backend": "onnxruntime"}}, {"backend": "tensorrt"}, [("onnxruntime", "CPU")]),
        ({"workers": 3}, {"device": "cuda:0"}, [("tensorrt", "cuda:0")]),
        (
            {"workers": [{"device": "cuda:0"}, {"device": "cuda:1"}, {"device": "cpu"}]},
            {},
            [("tensorrt", "cuda:0"), ("tensorrt", "cuda:1"), ("openvino", "CPU")],
        ),
        (
            {"workers": [{"device": "cuda:0", "backend": "onnxruntime"}, {"device": "CPU"}, {"backend": "tensorrt"}]},
            {},
            [("onnxruntime", "cuda:0"), ("openvino", "CPU"), ("tensorrt", "cuda:0")],
        ),
        (
            {"runtime": {"backend": "onnxruntime"}, "workers": [{"device": "cuda:0"}, {"backend": "openvino"}]},
            {},
            [("onnxruntime", "cuda:0"), ("openvino", "CPU")],
        ),
        ({"runtime": {"device": "cuda:1"}, "workers": [{"count": 1}, {"count": 2}]}, {}, [("tensorrt", "cuda:1")] * 2),
    ],
)
def test_an_entry_wins_over_runtime_and_runtime_over_the_flags(
    installed: Any, onnx: Path, noted: Noted, config: dict[str, Any], defaults: dict[str, Any], placed: Any
) -> None:
    load(onnx.parent, noted, config, **defaults)
    assert noted.placed == placed


def test_each_group_is_shown_with_its_backend_device_precision_and_count(
    installed: Any, onnx: Path, noted: Noted
) -> None:
    entries = [
        {"device": "cuda:0", "count": 2, "precision": "f16"},
        {"device": "cuda:1", "count": 3},
        {"device": "CPU"},
    ]
    model = load(onnx.parent, noted, {"workers": entries})
    shown = [
        (group["backend"], group["device"], group["precision"], group["count"]) for group in describe(model)["workers"]
    ]
    assert shown == [("tensorrt", "cuda:0", "f16", 2), ("tensorrt", "cuda:1", "f32", 3), ("openvino", "CPU", "f32", 2)]
    assert [options.contexts for _, options in noted.loads] == [2, 3, None]


def test_settings_reach_the_groups_that_they_are_for(installed: Any, onnx: Path, noted: Noted) -> None:
    load(
        onnx.parent,
        noted,
        {
            "runtime": {
                "precision": "bf16",
                "profiles": [{"images": {"min": [1, 3, 64, 64], "opt": [4, 3, 64, 64], "max": [8, 3, 64, 64]}}],
                "cpu_operators": ["Sigmoid"],
            },
            "workers": [
                {"device": "HETERO:GPU,CPU", "options": {"PERFORMANCE_HINT": "LATENCY"}, "precision": "f16"},
                {"device": "cuda:0", "options": {"workspace": 5}},
                {"device": "CPU"},
            ],
        },
    )
    hetero, cuda, plain = [options for _, options in noted.loads]
    assert [dict(one.options) for one in (hetero, cuda, plain)] == [
        {"PERFORMANCE_HINT": "LATENCY"},
        {"workspace": 5},
        {},
    ]
    assert [one.precision for one in (hetero, cuda, plain)] == ["f16", "bf16", "bf16"]
    assert [one.cpu_operators for one in (hetero, cuda, plain)] == [("Sigmoid",), (), ()]
    assert cuda.profiles[0]["images"].opt == (4, 3, 64, 64)


def test_runtime_options_are_for_all_groups_of_one_runtime_and_an_entry_has_the_last_word(
    installed: Any, onnx: Path, noted: Noted
) -> None:
    options = {"workspace": 1, "builder_level": 3}
    entries = [{"device": "cuda:0"}, {"device": "cuda:1", "options": {"workspace": 2}}]
    load(onnx.parent, noted, {"runtime": {"options": options}, "workers": entries})
    assert [dict(asked.options) for _, asked in noted.loads] == [options, {"workspace": 2, "builder_level": 3}]


def test_what_was_loaded_is_closed_where_a_later_device_fails(installed: Any, onnx: Path, noted: Noted) -> None:
    noted.fails = "cuda:1"
    with pytest.raises(InvalidModel, match="cuda:1 has no room"):
        load(onnx.parent, noted, {"workers": [{"device": "cuda:0"}, {"device": "CPU"}, {"device": "cuda:1"}]})
    assert noted.closed == ["closed cuda:0", "closed CPU"]


@pytest.mark.parametrize(
    ("config", "defaults", "says"),
    [
        (
            {},
            {"device": "CPU", "backend": "tensorrt"},
            "the tensorrt backend runs on NVIDIA GPUs, not on CPU (say cuda:0",
        ),
        (
            {"workers": [{"device": "cuda:0"}, {"device": "CPU"}]},
            {"backend": "tensorrt"},
            "runs on NVIDIA GPUs, not on CPU (say cuda:0 as its device, or leave the backend out: the device decides)",
        ),
        ({"runtime": {"device": "GPU", "backend": "tensorrt"}}, {}, "not on GPU"),
        ({}, {"device": "cuda:"}, "'cuda:' is no device (an NVIDIA GPU is cuda:0, cuda:1"),
        ({}, {"device": "cuda:one"}, "'cuda:one' is no device"),
        ({}, {"device": "CUDA.0"}, "'cuda.0' is no device"),
        ({}, {"device": "cuda0", "backend": "onnxruntime"}, "'cuda0' is no device"),
        ({}, {"device": "cuda:0,cuda:1"}, "for several, workers: [{device: cuda:0}, {device: cuda:1}]"),
        (
            {"runtime": {"options": {"a": 1}}, "workers": [{"device": "cuda:0"}, {"device": "CPU"}]},
            {},
            "runtime.options are one runtime's own, and this model has tensorrt and openvino (say them as options:",
        ),
        ({"runtime": {"plugins": ["a.so"]}}, {}, "runtime.plugins is TensorRT's, and this model runs by openvino"),
        (
            {"runtime": {"profiles": [{"images": {"min": [1], "opt": [1], "max": [1]}}], "backend": "onnxruntime"}},
            {},
            "runtime.profiles is TensorRT's, and this model runs by onnxruntime",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    installed: Any, onnx: Path, noted: Noted, config: dict[str, Any], defaults: dict[str, Any], says: str
) -> None:
    assert says in refused(onnx.parent, noted, config, **defaults)
    assert not noted.loads


def test_backends_that_call_a_tensor_otherwise_cannot_share_requests(installed: Any, onnx: Path, noted: Noted) -> None:
    noted.renames["openvino"] = "picture"
    config = {"workers": [{"device": "cuda:0"}, {"device": "CPU"}]}
    says = "the inputs of this model are images to tensorrt, and picture to openvino"
    assert says in refused(onnx.parent, noted, config)
    assert noted.read_by == ["tensorrt", "openvino"]


def test_two_real_runtimes_share_one_models_requests(onnx: Path) -> None:
    """Nothing noted: OpenVINO and ONNX Runtime, each with workers of its own, and one queue."""
    (onnx.parent / "model.yaml").write_text(
        yaml.safe_dump({"workers": [{"backend": "openvino", "count": 1}, {"backend": "onnxruntime", "count": 1}]})
    )
    (files,) = find_models(onnx.parent)
    model = load_model(files, Defaults())
    try:
        assert [placement.backend for placement in model.pool.placements] == ["openvino", "onnxruntime"]
        assert model.family is not None
        tensors = dict(model.family.prepare(tiny_models.picture(40, 60)).tensors)
        batch = {name: np.ascontiguousarray(value)[None] for name, value in tensors.items()}
        first, second = (dict(group.engine.clone().infer(batch)) for group in model.pool.groups)
        assert first.keys() == second.keys()
        assert all(np.abs(first[name] - second[name]).max() < 1e-3 for name in first)
    finally:
        model.close()


def test_two_runtimes_answer_alike_and_are_both_shown(onnx: Path, serve: Serve) -> None:
    entries = [
        {"device": "CPU", "backend": "openvino", "count": 1},
        {"device": "CPU", "backend": "onnxruntime", "count": 1},
    ]
    (onnx.parent / "model.yaml").write_text(yaml.safe_dump({"labels": ["a", "b", "c"], "workers": entries}))
    server = serve(onnx.parent)
    assert "openvino CPU f32, 1 worker; onnxruntime CPU as in the file, 1 worker" in server.log()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        body = {"images": [{"base64": base64.b64encode(picture(RED, (64, 64))).decode()}] * 12}
        answer = http.post("/v1/models/m/predict?score_threshold=0", json=body)
        assert answer.status_code == 200, answer.text
        scores = np.array([result["scores"] for result in answer.json()["results"]])
        assert scores.size
        assert np.ptp(scores, axis=0).max() < 1e-3
        shown = http.get("/v1/models/m").json()["workers"]
        assert [(group["backend"], group["device"], group["count"]) for group in shown] == [
            ("openvino", "CPU", 1),
            ("onnxruntime", "CPU", 1),
        ]
        (device,) = http.get("/v1/devices").json()["devices"]
        assert (device["backends"], device["workers"]) == (["openvino", "onnxruntime"], 2)


def test_a_pipeline_says_the_devices_of_its_steps(installed: Any, tmp_path: Path, noted: Noted) -> None:
    entries = [{"device": "cuda:1", "count": 1}, {"device": "CPU", "count": 1}]
    model = load(ocr_models.pipeline(tmp_path / "ocr", workers=entries), noted)
    assert noted.placed == [("tensorrt", "cuda:1"), ("openvino", "CPU")] * 3
    assert [len(part.pool.groups) for part in model.parts] == [2, 2, 2]


# Engines that TensorRT has built


@pytest.mark.parametrize("suffix", [".plan", ".engine", ".trt"])
def test_a_lone_engine_is_tensorrts_whatever_the_device(
    installed: Callable[..., None], tmp_path: Path, noted: Noted, suffix: str
) -> None:
    installed("openvino", "onnxruntime", cuda=True)
    plan = tmp_path / "m" / f"yolo{suffix}"
    noted.signature = get_backend("onnxruntime").read(Source(tiny_models.yolov8(plan.with_name("gone.onnx"))))
    plan.with_name("gone.onnx").unlink()
    plan.write_bytes(b"ftrt")
    load(plan, noted)
    load(plan.parent, noted, device="cuda:1")
    assert noted.placed == [("tensorrt", "cuda:0"), ("tensorrt", "cuda:1")]
    assert f"yolo{suffix} is a TensorRT engine, which the openvino backend does not read" in refused(
        plan, noted, backend="openvino"
    )
    assert f"yolo{suffix} runs on NVIDIA GPUs, not on CPU (say cuda:0 as its device)" in refused(
        plan, noted, device="CPU"
    )


def test_beside_its_onnx_file_an_engine_is_no_model_of_its_own(onnx: Path) -> None:
    onnx.with_suffix(".engine").write_bytes(b"ftrt")
    for path in (onnx, onnx.parent, onnx.parent.parent):
        assert [files.weights for files in find_models(path)] == [onnx]


def test_an_engine_that_is_named_is_served(installed: Any, onnx: Path, noted: Noted) -> None:
    plan = onnx.with_suffix(".plan")
    plan.write_bytes(b"ftrt")
    assert [files.weights for files in find_models(plan)] == [plan]
    noted.signature = get_backend("onnxruntime").read(Source(onnx))
    load(onnx.parent, noted, {"weights": "m.plan"})
    assert noted.placed == [("tensorrt", "cuda:0")]


def test_an_engine_of_another_name_is_another_model(onnx: Path) -> None:
    (onnx.parent / "other.plan").write_bytes(b"ftrt")
    assert sorted(files.name for files in find_models(onnx.parent)) == ["m", "other"]


@pytest.mark.parametrize("name", ["m.xml", "m.pdmodel", "m.tflite", "m.pb"])
@pytest.mark.parametrize("packages", [["tensorrt", "openvino"], ["openvino", "onnxruntime"]])
def test_a_gpu_runs_onnx_alone(
    installed: Callable[..., None], tmp_path: Path, noted: Noted, packages: list[str], name: str
) -> None:
    installed(*packages, cuda=True)
    (tmp_path / name).write_bytes(b"")
    says = refused(tmp_path / name, noted, device="cuda:0")
    assert f"cuda:0 runs ONNX files, and this is {name} (export the model to ONNX" in says


# Pictures that a GPU prepares

ON_GPU = {"prepare_on": "gpu"}


def test_a_gpu_gets_pictures_as_they_were_decoded(installed: Any, onnx: Path, noted: Noted) -> None:
    entries = [{"device": "cuda:0"}, {"device": "cuda:1", "backend": "onnxruntime"}]
    model = load(onnx.parent, noted, {"runtime": ON_GPU, "workers": entries})
    for _, options in noted.loads:
        assert options.image is not None
        assert options.image.unprepared
        assert options.image.size == (tiny_models.SIZE, tiny_models.SIZE)
    assert model.family is not None
    pixels = tiny_models.picture(40, 60)
    prepared = model.family.prepare(pixels).tensors["images"].item()  # a picture among arrays
    assert isinstance(prepared, Unprepared)
    assert prepared.pixels is pixels
    assert prepared.size == (tiny_models.SIZE, tiny_models.SIZE)
    noted.loads.clear()
    model.tensor_pool().close()
    assert [options.image for _, options in noted.loads] == [None, None]


def test_elsewhere_pictures_come_prepared(installed: Any, onnx: Path, noted: Noted) -> None:
    model = load(onnx.parent, noted, {"runtime": {"prepare_on": "cpu", "device": "cuda:0"}})
    ((_, options),) = noted.loads
    assert options.image is not None
    assert not options.image.unprepared
    assert model.family is not None
    assert isinstance(model.family.prepare(tiny_models.picture(40, 60)).tensors["images"], np.ndarray)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"runtime": ON_GPU}, "for workers on NVIDIA GPUs alone, and some run by openvino on CPU"),
        ({"runtime": ON_GPU, "workers": [{"device": "cuda:0"}, {"device": "CPU"}]}, "some run by openvino on CPU"),
        ({"runtime": {"device": "cuda:0", **ON_GPU, "backend": "fake"}}, "some run by fake on cuda:0"),
        (
            {"runtime": {**ON_GPU, "device": "cuda:0"}, "preprocess": [{"resize_short": 64}]},
            "needs pictures of one size, and preprocess leaves theirs open",
        ),
        (
            {
                "runtime": {**ON_GPU, "device": "cuda:0"},
                "preprocess": [{"resize": {"size": [64, 64], "interpolation": "cubic"}}],
            },
            "cubic interpolation, and the GPU does it by linear interpolation alone (",
        ),
    ],
)
def test_what_a_gpu_cannot_prepare_is_refused(
    installed: Any, tmp_path: Path, noted: Noted, config: dict[str, Any], says: str
) -> None:
    path = tiny_models.classifier(tmp_path / "m" / "m.onnx", size=None)
    usual = {"task": "classification", "preprocess": [{"resize": [64, 64]}]}
    assert says in refused(path.parent, noted, {**usual, **config})
    assert not noted.loads


def test_lines_of_text_are_prepared_here(installed: Any, tmp_path: Path, noted: Noted) -> None:
    says = refused(ocr_models.pipeline(tmp_path / "ocr", runtime={"device": "cuda:0", **ON_GPU}), noted)
    assert "steps.detect" in says  # whose pictures are of any size
    config = {"family": "ocr_recognition", "labels": list("abcdef"), "runtime": {"device": "cuda:0", **ON_GPU}}
    says = refused(tmp_path / "ocr" / "tiny_rec", noted, config)
    assert "prepare_on: gpu is not for lines of text" in says


def test_what_was_decoded_smaller_is_found_again_in_the_original(installed: Any, onnx: Path, noted: Noted) -> None:
    """decode: fast."""
    models = [
        load(onnx.parent, noted, {"decode": "fast", "runtime": {"device": "cuda:0", "prepare_on": where}})
        for where in ("cpu", "gpu")
    ]
    small, whole = tiny_models.picture(100, 150), Geometry(200, 300).scaled(0.5, 0.5)
    here, there = (model.family.prepare(small, whole).geometry for model in models if model.family)
    assert (here.height, here.width) == (there.height, there.width) == (200, 300)
    corners = np.array([[0.0, 0.0, 64.0, 64.0], [10.0, 20.0, 30.0, 40.0]], np.float32)
    assert np.array_equal(here.to_original(corners), there.to_original(corners))


# Cores


def test_cores_reach_the_workers(installed: Any, onnx: Path, noted: Noted) -> None:
    first = min(cpu.usable_cores())
    entries = [
        {"device": "cuda:0", "cores": first},
        {"device": "cuda:0", "cores": f"{first}-{first}"},
        {"device": "CPU"},
    ]
    model = load(onnx.parent, noted, {"workers": entries})
    assert [group.cores for group in model.pool.groups] == [{first}, {first}, None]


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"cores": "0,60000"}, "names 60000, on which this process may not run (it may on "),
        ({"cores": "many"}, "is no list of cores (write "),
        (
            {"cores": "near", "device": "CPU"},
            "cores: near is for workers on NVIDIA GPUs, and these are on CPU (name the cores",
        ),
    ],
)
def test_cores_that_are_not_there_are_refused(
    installed: Any, onnx: Path, noted: Noted, said: dict[str, Any], says: str
) -> None:
    assert says in refused(onnx.parent, noted, {"workers": [said]})
    assert not noted.loads


def test_near_is_where_the_gpu_is_plugged_in(
    installed: Any, onnx: Path, noted: Noted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = FakeDriver(devices=2)
    known = {driver.properties(1).bus: frozenset({min(cpu.usable_cores())})}
    monkeypatch.setattr(cores, "open_driver", lambda: driver)
    monkeypatch.setattr(cores, "cores_near", known.get)
    entries = [{"device": "cuda:1", "cores": "near"}, {"device": "cuda:0", "cores": "near"}]
    model = load(onnx.parent, noted, {"workers": entries})
    assert [group.cores for group in model.pool.groups] == [{min(cpu.usable_cores())}, None]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "cores: near has no effect: the system does not tell which are near cuda:0"
    ]


def test_near_a_gpu_that_is_not_there_is_left_to_who_loads_it(
    installed: Any, onnx: Path, noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "open_driver", lambda: FakeDriver(devices=1))
    noted.fails = "cuda:7"
    with pytest.raises(InvalidModel, match="cuda:7 has no room"):
        load(onnx.parent, noted, {"workers": [{"device": "cuda:7", "cores": "near"}]})


# inspect: flags win, and nothing is asked of this machine


def test_inspect_sees_what_a_device_would_run(onnx: Path) -> None:
    entries = [
        {"device": "CPU", "backend": "openvino"},
        {"device": "cuda:0", "backend": "onnxruntime", "cores": "near"},
    ]
    (onnx.parent / "model.yaml").write_text(yaml.safe_dump({"workers": entries}))
    (files,) = find_models(onnx.parent)
    assert inspect_model(files).model.backend == "openvino"
    assert inspect_model(files, backend="onnxruntime").model.backend == "onnxruntime"
    (onnx.parent / "model.yaml").write_text(yaml.safe_dump({"runtime": {"device": "cuda:0", **ON_GPU}}))
    assert inspect_model(files, device="CPU").model.backend == "openvino"


def test_inspect_says_what_the_gpus_are_doing(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(device_count=lambda: 2, properties=_properties)
    monkeypatch.setattr(gpus, "open_driver", lambda: driver)
    nvml.fails["nvmlDeviceGetUtilizationRates"] = FakeNvml.NVMLError_NotSupported()
    assert notes_on_gpus() == (
        "cuda:0 is A100-SXM4: 5.0 of 80.0 GiB in use",
        "cuda:1 is H100 PCIe: 5.0 of 80.0 GiB in use",
    )
    nvml.fails.clear()
    assert notes_on_gpus()[0].endswith("GiB in use, busy 37% of the time")
    assert nvml.open == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert notes_on_gpus() == ("cuda:0 is A100-SXM4", "cuda:1 is H100 PCIe")
    driver.device_count = lambda: 0
    assert notes_on_gpus() == ("this machine has a driver of NVIDIA's, and no GPU",)
    monkeypatch.setattr(gpus, "open_driver", lambda: FakeDriver(there=False))
    assert notes_on_gpus()[0].startswith("this machine's NVIDIA GPUs are not known: ")


# GET /v1/devices


def test_the_server_tells_where_its_models_run(demo_server: Server) -> None:
    answer = httpx.get(f"{demo_server.url}/v1/devices")
    assert answer.status_code == 200
    (entry,) = DeviceList.model_validate(answer.json()).model_dump()["devices"]
    assert answer.json() == {"devices": [entry]}  # nothing that its schema does not say
    assert entry["device"] == "CPU"
    assert entry["backends"] == ["openvino"]
    assert entry["models"] == ["shapes", "digits"]
    assert entry["workers"] >= 2
    assert entry["gpu"] is None


@pytest.fixture
def serving_on_gpus(installed: Any, onnx: Path, noted: Noted, monkeypatch: pytest.MonkeyPatch) -> DevicesApi:
    """`m` on two GPUs and the CPU, and the model's own tensors too."""
    models = Repository()
    entries = [{"device": "cuda:1", "count": 2}, {"device": "cuda:0", "count": 1}, {"device": "CPU", "count": 1}]
    model = load(onnx.parent, noted, {"workers": entries})
    models._models["m"] = model
    model.tensor_pool()
    monkeypatch.setattr(
        devices_api, "open_driver", lambda: SimpleNamespace(device_count=lambda: 2, properties=_properties)
    )
    return DevicesApi(models)


def _properties(ordinal: int) -> Any:
    return SimpleNamespace(bus=("0000:3b:00.0", "0000:af:00.0")[ordinal], name=("A100-SXM4", "H100 PCIe")[ordinal])


def test_what_gpus_are_doing_stands_beside_what_runs_there(serving_on_gpus: DevicesApi, nvml: FakeNvml) -> None:
    told = json.loads(bytes(serving_on_gpus.devices().body))["devices"]
    assert [(entry["device"], entry["workers"], entry["backends"]) for entry in told] == [
        ("cuda:1", 4, ["tensorrt"]),
        ("cuda:0", 2, ["tensorrt"]),
        ("CPU", 2, ["openvino"]),
    ]
    assert [entry["gpu"] and entry["gpu"]["name"] for entry in told] == ["NVIDIA H100", "NVIDIA A100", None]
    assert told[0]["gpu"] == {
        "device": "cuda:1",
        "name": "NVIDIA H100",
        "bus": "0000:af:00.0",
        "memory_used": 5 * GIB,
        "memory_total": 80 * GIB,
        "memory_own": 3 * GIB,
        "utilization": 0.37,
    }


def test_without_nvidia_ml_the_devices_are_told_all_the_same(
    serving_on_gpus: DevicesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    told = json.loads(bytes(serving_on_gpus.devices().body))["devices"]
    assert [(entry["device"], entry["gpu"]) for entry in told] == [("cuda:1", None), ("cuda:0", None), ("CPU", None)]


# The command, without a driver


def has_driver() -> bool:
    from visionpool_server.cuda.driver import open_driver
    from visionpool_server.cuda.errors import NoDriver

    try:
        return open_driver().device_count() > 0
    except NoDriver:
        return False


@pytest.mark.skipif(not any(map(find_spec, choice.TENSORRT)), reason="no TensorRT is installed")
@pytest.mark.parametrize(
    "flags",
    [
        ["--device", "cuda:0"],
        ["--device", "CUDA"],
        ["--device", "cuda:7"],
        ["--backend", "tensorrt"],
    ],
)
def test_without_a_driver_the_server_ends_with_one_line(onnx: Path, flags: list[str]) -> None:
    if has_driver():
        pytest.skip("this machine has an NVIDIA GPU")
    done = visionpool("serve", onnx, "--http-port", 0, "--grpc-port", 0, *flags)
    failed(done, "error: m: ", "NVIDIA driver")


def test_tensorrt_on_the_cpu_is_refused_by_the_command(onnx: Path) -> None:
    done = visionpool("serve", onnx, "--http-port", 0, "--grpc-port", 0, "--backend", "tensorrt", "--device", "CPU")
    failed(done, "error: m: the tensorrt backend runs on NVIDIA GPUs, not on CPU")
