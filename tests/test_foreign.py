"""Files that are models, but of no format that is read: each refusal names the format, and the tool that converts it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from visionpool.errors import InvalidModel
from visionpool_server.models import foreign
from visionpool_server.models.files import find_models
from visionpool_server.models.loader import Defaults, load_model

from tests import format_models, tiny_models
from tests.test_cli import failed, visionpool

FORMATS = [
    ("best.pt", "PyTorch checkpoint", "yolo export"),
    ("resnet.pth", "PyTorch checkpoint", "torch.onnx.export"),
    ("RESNET.PTH", "PyTorch checkpoint", "torch.onnx.export"),
    ("lightning.ckpt", "PyTorch checkpoint", "torch.onnx.export"),
    ("model.safetensors", "weights without a program", "optimum-cli export onnx"),
    ("model.h5", "Keras", "export('saved_model')"),
    ("model.keras", "Keras", "tf2onnx"),
    ("model.mlmodel", "Core ML", "ONNX"),
    ("net.caffemodel", "Caffe", "x2paddle --framework caffe"),
    ("deploy.prototxt", "Caffe", "x2paddle --framework caffe"),
    ("resnet-0000.params", "MXNet", "mxnet.onnx.export_model"),
    ("yolo.param", "ncnn", "export the model it was made from"),
    ("model.ncnn.bin", "weights without their model", "ncnn"),
    ("yolo.rknn", "compiled for one kind of chip", "serve the .onnx"),
    ("yolo.uff", "TensorRT's old form", "frozen .pb"),
    ("model_final.pdparams", "Paddle checkpoint", "tools/export_model.py -c CONFIG"),
    ("model_final.pdopt", "Paddle checkpoint", "tools/export.py --config CONFIG"),
    ("inference.pdiparams", "without their program", "inference.json"),
    ("__model__", "Paddle 1", "save_inference_model"),
    ("model.ckpt-100.index", "TensorFlow checkpoint", "tf2onnx.convert --checkpoint"),
    ("model.ckpt-100.data-00000-of-00001", "TensorFlow checkpoint", "tf2onnx.convert --checkpoint"),
    ("model.ckpt-100.meta", "TensorFlow checkpoint", "tf2onnx.convert --checkpoint"),
    ("checkpoint", "TensorFlow checkpoint", "tf2onnx.convert --checkpoint"),
    ("graph.pbtxt", "TensorFlow graph as text", "as_text=False"),
    ("llava.gguf", "llama.cpp", "vision models"),
    ("model.nb", "runtime of phones", "ONNX"),
    ("model.tar", "an archive", "tar -xf"),
    ("model.tar.gz", "an archive", "unpack it"),
    ("model.zip", "an archive", "unzip"),
    ("forest.pkl", "pickled", "skl2onnx"),
    ("yolo.bin", "weights without their model", ".xml"),
    ("yolo.onnx.data", "weights of an ONNX file", ".onnx"),
]
JSON = [
    ("inference.json", '{"base_code": {"magic": "pir"}}', "Paddle 3 program without its weights", ".pdiparams"),
    ("inference.json", "", "Paddle 3 program without its weights", ".pdiparams"),
    ("ocr.json", '{"base_code":{"magic":"pir","version":1}', "Paddle 3 program without its weights", ".pdiparams"),
    ("model.json", '{"format": "layers-model", "modelTopology": {}}', "TensorFlow.js", "tensorflowjs_converter"),
    ("resnet-symbol.json", '{"nodes": [], "arg_nodes": [0]}', "MXNet", "mxnet.onnx.export_model"),
    ("architecture.json", '{"class_name": "Functional"}', "Keras", "load_model"),
]


def written(folder: Path, name: str, content: str = "?") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


def refused(path: Path) -> InvalidModel:
    with pytest.raises(InvalidModel) as caught:
        find_models(path)
    return caught.value


@pytest.mark.parametrize(("name", "what", "tool"), FORMATS)
def test_a_file_and_a_folder_with_it_say_what_it_is_and_what_converts_it(
    tmp_path: Path, name: str, what: str, tool: str
) -> None:
    path = written(tmp_path / "m", name)
    for place in (path, path.parent):
        error = refused(place)
        assert re.search(rf"{re.escape(name)} is .*{re.escape(what)}", error.message)
        assert tool in (error.hint or "")


@pytest.mark.parametrize(("name", "content", "what", "tool"), JSON)
def test_json_is_told_by_what_is_in_it(tmp_path: Path, name: str, content: str, what: str, tool: str) -> None:
    path = written(tmp_path / "m", name, content)
    for place in (path, path.parent):
        error = refused(place)
        assert what in error.message
        assert tool in (error.hint or "")


@pytest.mark.parametrize(("name", "content"), [("labels.json", '["cat"]'), ("notes.txt", ""), ("a.json", "\0\xff{")])
def test_any_other_file_is_no_model(tmp_path: Path, name: str, content: str) -> None:
    path = written(tmp_path / "m", name, content)
    assert f"{name} is not a model that can be read" in str(refused(path))
    assert "no model in" in str(refused(path.parent))


def test_a_core_ml_package_is_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "yolo.mlpackage", "Manifest.json", "{}")
    for place in (tmp_path / "yolo.mlpackage", tmp_path):
        assert "yolo.mlpackage is a Core ML model" in str(refused(place))


def test_of_several_the_surest_is_named(tmp_path: Path) -> None:
    for name in ("a.zip", "b.bin", "c.pth"):
        written(tmp_path, name)
    assert "c.pth is a PyTorch checkpoint" in str(refused(tmp_path))


# What lies beside models


def test_what_is_left_beside_an_export_does_not_matter(tmp_path: Path) -> None:
    tiny_models.yolov8(tmp_path / "m" / "best.onnx")
    for name in ("best.pt", "model_final.pdparams", "pictures.zip", "best.bin", "checkpoint"):
        written(tmp_path / "m", name)
    written(tmp_path / "m" / "weights", "last.pt")
    for path in (tmp_path / "m", tmp_path / "m" / "best.onnx", tmp_path):
        assert [files.weights and files.weights.name for files in find_models(path)] == ["best.onnx"]


def test_a_model_that_is_not_read_is_not_passed_over_in_a_repository(tmp_path: Path) -> None:
    tiny_models.yolov8(tmp_path / "good" / "m.onnx")
    written(tmp_path / "pictures", "pictures.zip")
    assert [files.name for files in find_models(tmp_path)] == ["good"]
    written(tmp_path / "theirs" / "1", "model.rknn")
    error = refused(tmp_path)
    assert error.message.endswith("theirs/1/model.rknn is compiled for one kind of chip")


def test_a_saved_models_own_files_are_no_checkpoint(tmp_path: Path) -> None:
    format_models.saved_model(tmp_path)
    for name in ("variables.index", "variables.data-00000-of-00001"):
        written(tmp_path / "variables", name)
    written(tmp_path / "assets", "vocabulary.txt")
    (files,) = find_models(tmp_path)
    assert files.weights == tmp_path


# Parts that are missing


def loaded(path: Path, **defaults: Any) -> str:
    (files,) = find_models(path)
    with pytest.raises(InvalidModel) as caught:
        load_model(files, Defaults(workers=1, **defaults))
    return str(caught.value)


def test_an_ir_without_its_weights_names_them(tmp_path: Path) -> None:
    format_models.ir(tmp_path)
    (tmp_path / "model.bin").unlink()
    assert "model.xml has its weights in model.bin, which is not there (copy the .bin" in loaded(tmp_path)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_onnx_file_without_its_data_names_them(tmp_path: Path, backend: str) -> None:
    path = format_models.onnx(tmp_path)
    onnx.save(onnx.load(path), str(path), save_as_external_data=True, size_threshold=0, location="big.onnx.data")
    (files,) = find_models(tmp_path)
    assert load_model(files, Defaults(workers=1, backend=backend)).name == files.name
    (tmp_path / "big.onnx.data").unlink()
    assert "model.onnx has its weights in big.onnx.data, which is not there" in loaded(tmp_path, backend=backend)


def test_an_ir_whose_weights_are_cut_is_refused(tmp_path: Path) -> None:
    format_models.ir(tmp_path)
    (tmp_path / "model.bin").write_bytes((tmp_path / "model.bin").read_bytes()[:-1])
    assert "OpenVINO cannot read model.xml" in loaded(tmp_path)


def test_a_paddle_program_without_its_weights_names_them(tmp_path: Path) -> None:
    format_models.paddle(tmp_path)
    (tmp_path / "inference.pdiparams").unlink()
    assert "inference.pdmodel has its weights in inference.pdiparams, which is not there" in loaded(tmp_path)


def test_a_paddle_program_whose_weights_are_cut_is_refused(tmp_path: Path) -> None:
    format_models.paddle(tmp_path)
    path = tmp_path / "inference.pdiparams"
    path.write_bytes(path.read_bytes()[:-1])
    message = loaded(tmp_path)
    assert "OpenVINO cannot read inference.pdmodel: File containing constant with name" in message
    assert "is it whole" in message


def test_an_onnx_file_whose_data_are_cut_names_them(tmp_path: Path) -> None:
    path = format_models.onnx(tmp_path)
    onnx.save(onnx.load(path), str(path), save_as_external_data=True, size_threshold=0, location="big.data")
    (tmp_path / "big.data").write_bytes(b"")
    assert "externally stored data in file (big.data" in loaded(tmp_path)


@pytest.mark.parametrize("name", ["m.onnx", "m.pb", "m.tflite", "m.xml", "m.pdmodel"])
def test_a_pointer_of_git_lfs_is_known(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    assert f"{name} is a pointer of Git LFS, not the file itself (git lfs pull)" in loaded(tmp_path)


def test_a_saved_model_without_its_variables_names_them(testdata: Path, tmp_path: Path) -> None:
    shutil.copy(testdata / "models" / "squeezenet_saved_model" / "saved_model.pb", tmp_path)
    assert "has its weights in variables/variables.index, which is not there (copy the whole folder" in loaded(tmp_path)


def test_a_file_that_model_yaml_names_is_explained_too(tmp_path: Path) -> None:
    written(tmp_path, "best.pt")
    written(tmp_path, "model.yaml", "weights: best.pt")
    assert "best.pt is a PyTorch checkpoint, not an export (for Ultralytics: yolo export" in loaded(tmp_path)


@pytest.mark.parametrize("name", ["m.onnx", "m.pb", "m.tflite", "m.xml", "m.pdmodel"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"<xml", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_only_has_the_name_of_a_model_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert loaded(tmp_path)


def test_the_command_line_says_it_in_two_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "best.pt")
    failed(
        visionpool("serve", path, "--http-port", "0", "--grpc-port", "0"), "PyTorch checkpoint", "yolo export model="
    )


def test_every_hint_says_something_to_do() -> None:
    formats = {id(one): one for one in (*foreign._BY_SUFFIX.values(), *foreign._BY_JSON.values())}
    assert len(formats) >= 20
    for one in formats.values():
        assert one.what
        assert one.hint
