"""Plan files of all makers, and the cache that keeps those built here: damaged, shared, out of date, unwritable."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from visionpool.errors import InvalidModel
from visionpool_server.backends import ShapeRange, Signature, Source, TensorSpec
from visionpool_server.backends.tensorrt.api import Api, find_api
from visionpool_server.backends.tensorrt.backend import TensorRtBackend
from visionpool_server.backends.tensorrt.builder import build_plan
from visionpool_server.backends.tensorrt.plan_cache import PlanCache, cache_folder, plan_name
from visionpool_server.backends.tensorrt.plan_header import header_of
from visionpool_server.backends.tensorrt.plans import read_plan, write_plan
from visionpool_server.backends.tensorrt.settings import read_settings
from visionpool_server.cuda.driver import Properties
from visionpool_server.models.files import weights_in
from visionpool_server.models.ultralytics import unquoted

from tests import tensorrt_models

PLAN = b"ftrt" + bytes(20) + bytes([10, 16, 1, 11]) + b"the engine itself"
SIGNATURE = Signature(
    (TensorSpec("images", (None, 3, 640, 640), "float32"),),
    (TensorSpec("output0", (None, 84, None), "float16"), TensorSpec("free", None, "int64")),
    {"names": "{0: 'cat', 1: 'dög'}", "task": "detect"},
    {"output0": "sigmoid"},
)
H100 = Properties("NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, 132, "0000:3b:00.0")
TRT = Api(None, "tensorrt", (10, 16, 1, 11), rtx=False)
RTX = Api(None, "tensorrt_rtx", (1, 7, 1, 116), rtx=True)


# Files.


def test_the_header_of_a_real_plan_tells_its_maker(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    api = find_api("tensorrt_rtx")
    path = tensorrt_models.scores(tmp_path / "model.onnx", shape=(1, 3, 32, 32))
    header = header_of(build_plan(api, path))
    assert header == (True, api.version[:4])
    assert header.title == api.title


def test_what_is_written_is_read_without_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    write_plan(path, PLAN, SIGNATURE)
    file = read_plan(path)
    assert file.plan == PLAN
    assert file.signature == SIGNATURE
    assert file.header.title == "TensorRT 10.16.1.11"
    assert TensorRtBackend().read(Source(path)) == SIGNATURE
    assert [each.name for each in tmp_path.iterdir()] == ["model.plan"]


@pytest.mark.parametrize("suffix", [".plan", ".engine"])
def test_a_bare_plan_says_nothing_of_itself(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(PLAN)
    file = read_plan(path)
    assert (file.plan, file.metadata, file.signature) == (PLAN, {}, None)


def ultralytics(said: Any, plan: bytes = PLAN) -> bytes:
    """As `exporter.py` writes engines: a length in 4 bytes, JSON, the plan."""
    text = json.dumps(said).encode()
    return len(text).to_bytes(4, "little", signed=True) + text + plan


def test_an_engine_of_ultralytics_says_its_names(tmp_path: Path) -> None:
    said = {
        "description": "Ultralytics YOLOv8n model trained on coco.yaml",
        "stride": 32,
        "task": "detect",
        "batch": 1,
        "imgsz": [640, 480],
        "names": {"0": "person", "1": "bicycle"},
        "args": {"batch": 1, "half": True, "nms": True},
    }
    path = tmp_path / "yolov8n.engine"
    path.write_bytes(ultralytics(said))
    file = read_plan(path)
    assert file.plan == PLAN
    assert file.signature is None  # it says nothing of tensors
    assert unquoted(file.metadata) == {
        **{"names": {0: "person", 1: "bicycle"}, "imgsz": [640, 480], "task": "detect"},
        **{"args": said["args"], "description": said["description"]},
    }


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page, perhaps of a download that failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS's note"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive, or a PyTorch checkpoint"),
        (b"\x08\x09\x12\x07pytorch", "it looks like an ONNX file; call it .onnx"),
        (PLAN[:20], "its first bytes are none of a plan's"),
        (b"ptrt" + PLAN[4:], "its first bytes are none of a plan's"),
        (ultralytics({"task": "detect"}, b"nothing"), "its first bytes are none of a plan's"),
        (ultralytics([1, 2]), "its first bytes are none of a plan's"),
        (b"\x05\x00\x00\x00{bad}" + PLAN, "its first bytes are none of a plan's"),
        (b"\xff\xff\xff\x7f" + PLAN, "its first bytes are none of a plan's"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(data)
    with pytest.raises(InvalidModel, match=r"model\.plan is no TensorRT engine") as caught:
        read_plan(path)
    assert complaint in caught.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="cannot be read: no such file"):
        read_plan(tmp_path / "model.plan")


def test_a_plan_that_was_changed_is_refused(tmp_path: Path) -> None:
    """TensorRT may take a damaged plan, and end the process by it."""
    path = tmp_path / "model.plan"
    write_plan(path, PLAN, SIGNATURE)
    data = path.read_bytes()
    for damaged in (data[:-1], data[:-5] + b"x" + data[-4:], data + b"more"):
        path.write_bytes(damaged)
        with pytest.raises(InvalidModel, match="is damaged: it is not what was written"):
            read_plan(path)


@pytest.mark.parametrize(
    "ours",
    [
        [],
        {},
        3,
        {"inputs": 1, "outputs": [], "endings": {}},
        {"inputs": [[1]], "outputs": [], "endings": {}},
        {"inputs": []},
    ],
    ids=str,
)
def test_what_is_said_in_another_form_is_passed_over(tmp_path: Path, ours: Any) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(ultralytics({"task": "detect", "visionpool": ours}))
    file = read_plan(path)
    assert (file.signature, file.metadata) == (None, {"task": "detect"})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.plan"
    write_plan(path, PLAN, SIGNATURE)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        file = read_plan(path)
    except InvalidModel:
        return
    assert header_of(file.plan)


# The cache.


def name_of(weights: Path, **changes: Any) -> str:
    said: dict[str, Any] = {"api": TRT, "gpu": H100, "profiles": (), "options": {}, **changes}
    api, gpu, profiles = said.pop("api"), said.pop("gpu"), said.pop("profiles")
    return plan_name(api, weights, gpu, profiles, read_settings(said.pop("options")), **said)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "Yolo v5.onnx"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    (path.parent / "more.bin").write_bytes(b"more weights")
    (path.parent / "plugin.so").write_bytes(b"code")
    return path


def test_names_tell_people_what_is_in_them(weights: Path) -> None:
    stem, _, key = name_of(weights).removesuffix(".plan").rpartition("-")
    assert stem == "yolo-v5-nvidia-h100-80gb-hbm3-9.0-trt10.16.1.11"
    assert len(key) == 16
    ampere = name_of(weights, options={"hardware_compatibility": "ampere_plus"})
    assert ampere.startswith("yolo-v5-ampere-plus-trt10.16.1.11-")
    assert name_of(weights, api=RTX).startswith("yolo-v5-any-rtx1.7.1.116-")
    assert name_of(weights, api=RTX, options={"compute_capability": 8.6}).startswith("yolo-v5-8.6-rtx1.7.1.116-")


def test_an_engine_beside_its_weights_is_no_further_model(weights: Path, tmp_path: Path) -> None:
    """Alone it is one: somebody has copied it there."""
    write_plan(weights.parent / name_of(weights), PLAN, SIGNATURE)
    assert weights_in(weights.parent) == [weights]
    alone = tmp_path / "alone" / name_of(weights)
    write_plan(alone, PLAN, SIGNATURE)
    assert weights_in(alone.parent) == [alone]


def test_the_same_wish_has_the_same_name(weights: Path) -> None:
    assert name_of(weights) == name_of(weights)
    assert name_of(weights, precision="f32") == name_of(weights)
    for irrelevant in ({"cuda_graphs": False}, {"timing_cache": False}, {"library": "tensorrt"}):
        assert name_of(weights, options=irrelevant) == name_of(weights)
    assert name_of(weights, options={"weight_streaming": 5}) == name_of(weights, options={"weight_streaming": True})


def test_whatever_changes_the_engine_changes_the_name(weights: Path) -> None:
    one = {"images": ShapeRange((1, 3), (2, 3), (4, 3))}
    ranged = {**one, "images": ShapeRange((1, 3), (4, 3), (4, 3))}
    names = [
        name_of(weights),
        name_of(weights, precision="f16"),
        name_of(weights, api=replace(TRT, version=(10, 16, 1, 12))),
        name_of(weights, api=RTX),
        name_of(weights, gpu=replace(H100, name="NVIDIA H200")),
        name_of(weights, profiles=(one,)),
        name_of(weights, profiles=(ranged,)),
        name_of(weights, profiles=(one, ranged)),
        name_of(weights, external=("more.bin",)),
        name_of(weights, external=("missing.bin",)),
        name_of(weights, plugins=(weights.parent / "plugin.so",)),
        *(
            name_of(weights, options=options)
            for options in (
                *({"tf32": True}, {"builder_level": 5}, {"workspace_mb": 10}, {"version_compatible": True}),
                *({"weight_streaming": True}, {"aux_streams": 1}, {"profiling_verbosity": "detailed"}),
                *({"hardware_compatibility": "ampere_plus"}, {"hardware_compatibility": "same_compute_capability"}),
            )
        ),
    ]
    weights.write_bytes(b"other weights")
    names.append(name_of(weights))
    (weights.parent / "more.bin").write_bytes(b"changed")
    names.append(name_of(weights, external=("more.bin",)))
    assert len(set(names)) == len(names)


def test_compatible_engines_do_not_ask_for_one_kind_of_gpu(weights: Path) -> None:
    h200 = replace(H100, name="NVIDIA H200")
    for options in ({"hardware_compatibility": "ampere_plus"}, {"hardware_compatibility": "same_compute_capability"}):
        assert name_of(weights, options=options, gpu=h200) == name_of(weights, options=options)
    assert name_of(weights, api=RTX, gpu=h200) == name_of(weights, api=RTX)


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "models", tmp_path / "cache")
    assert cache.find("a.plan") is None
    cache.keep("a.plan", PLAN, SIGNATURE)
    found = cache.find("a.plan")
    assert found is not None
    assert (found.plan, found.signature) == (PLAN, SIGNATURE)
    assert not (tmp_path / "models").exists()


def test_one_beside_the_weights_comes_first(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "models", tmp_path / "cache")
    cache.keep("a.plan", PLAN, SIGNATURE)
    write_plan(tmp_path / "models" / "a.plan", PLAN + b"!", SIGNATURE)
    found = cache.find("a.plan")
    assert found is not None
    assert found.plan == PLAN + b"!"


def test_a_damaged_entry_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PlanCache(tmp_path / "models", tmp_path)
    cache.keep("a.plan", PLAN, SIGNATURE)
    (tmp_path / "a.plan").write_bytes((tmp_path / "a.plan").read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        assert cache.find("a.plan") is None
    assert "is built anew: a.plan is damaged" in caplog.text
    cache.keep("a.plan", PLAN, SIGNATURE)
    assert cache.find("a.plan") is not None


def test_a_folder_that_cannot_be_written_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        PlanCache(tmp_path, tmp_path / "file" / "cache").keep("a.plan", PLAN, SIGNATURE)
    assert "built anew the next time" in caplog.text
    PlanCache(tmp_path, None).keep("a.plan", PLAN, SIGNATURE)  # nothing is to be kept


def test_several_that_keep_one_entry_leave_a_good_one(tmp_path: Path) -> None:
    """While others read it: each sees a whole one."""
    cache, seen = PlanCache(tmp_path / "models", tmp_path / "cache"), []

    def work(number: int) -> None:
        for _ in range(20):
            cache.keep("a.plan", PLAN + bytes([number]) * 100_000, SIGNATURE)
            seen.append(cache.find("a.plan"))

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80
    assert all(seen)
    assert [each.name for each in (tmp_path / "cache").iterdir()] == ["a.plan"]


def test_the_folder_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "visionpool" / "tensorrt"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder(None) == tmp_path / "home/.cache/visionpool/tensorrt"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert cache_folder(None) is None
