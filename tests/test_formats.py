"""Every format that is served: real weights and small models made here, against ONNX Runtime and NumPy, from a file to an answer.

What is done once a model is loaded does not depend on its format; so this asks for pictures and tensors in the simplest ways.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnxruntime as ort
import pytest
import visionpool
import yaml
from numpy.typing import NDArray
from PIL import Image
from visionpool.errors import InvalidModel
from visionpool.results import ClassifyResult
from visionpool_server.models.files import find_models
from visionpool_server.models.loader import Defaults, Model, load_model

from tests import format_models, tiny_models
from tests.format_models import BIAS, FORMATS, SIZE
from tests.real_server import Server, serving
from tests.test_cli import visionpool as command

Array = NDArray[np.float32]
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CLASSIFIER = {
    "task": "classification",
    "preprocess": [{"resize_short": 256}, {"center_crop": 224}, {"normalize": IMAGENET}],
}
SQUEEZENETS = {"squeezenet": 1e-4, "squeezenet_ir": 2e-3, "squeezenet_paddle": 1e-4} | {
    "squeezenet_tf": 1e-4,
    "squeezenet_saved_model": 1e-4,
}  # the IR's weights are 16 bits wide
DIGITS = {"task": "classification", "preprocess": [{"resize": 28}]}


def config(folder: Path, content: Mapping[str, Any]) -> Path:
    (folder / "model.yaml").write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    return folder


def load(path: Path, **defaults: Any) -> Model:
    (files,) = find_models(path)
    return load_model(files, Defaults(**{"workers": 1, **defaults}))


def inferred(server: Server, model: str, name: str, tensor: NDArray[Any]) -> dict[str, Array]:
    """A KServe request over HTTP, of plain JSON."""
    sent = {"name": name, "shape": list(tensor.shape), "datatype": "FP32", "data": tensor.ravel().tolist()}
    answer = httpx.post(f"{server.url}/v2/models/{model}/infer", json={"inputs": [sent]}, timeout=60)
    assert answer.status_code == 200, answer.text
    return {
        output["name"]: np.array(output["data"], np.float32).reshape(output["shape"])
        for output in answer.json()["outputs"]
    }


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    out: Array = powers / powers.sum(axis=-1, keepdims=True)
    return out


# The small model in every format


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    for name, (write, _, _) in FORMATS.items():
        (folder / name).mkdir()
        write(folder / name)
    return folder


@pytest.fixture(scope="module")
def all_formats(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each twice: as plain tensors, and as a classifier of pictures."""
    folder = tmp_path_factory.mktemp("served")
    for name in FORMATS:
        shutil.copytree(generated / name, folder / name)
        shutil.copytree(generated / name, folder / f"{name}_classifier")
        said = {
            "task": "classification",
            "labels": ["r", "g", "b"],
            "preprocess": [{"resize": SIZE}, {"normalize": {"scale": 0.1}}],
        }
        config(folder / f"{name}_classifier", said)
    with serving(folder) as server:
        yield server


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_of_any_format_is_served_as_its_tensors(name: str, all_formats: Server) -> None:
    _, layout, (taken, given) = FORMATS[name]
    rows = 1 if name == "tflite" else 3  # TensorFlow Lite fixes the batch
    shape = (rows, 3, SIZE, SIZE) if layout == "NCHW" else (rows, SIZE, SIZE, 3)
    pictures = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    answer = inferred(all_formats, name, taken, pictures)
    assert list(answer) == [given]
    assert np.allclose(answer[given], format_models.means(pictures, layout), atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_of_any_format_is_served_with_pictures(name: str, all_formats: Server) -> None:
    """Whatever the layout: channels in their order, and each with its own numbers."""
    with visionpool.Client(all_formats.url) as client:
        for colour in ((30, 10, 20), (0, 40, 20), (10, 0, 5)):
            pixels = np.full((12, 20, 3), colour[::-1], np.uint8)
            result = client.predict(f"{name}_classifier", cv2.imencode(".png", pixels)[1].tobytes(), top_k=3)
            assert isinstance(result, ClassifyResult)
            expected = softmax(np.array(colour, np.float32) * 0.1 + BIAS)
            order = np.argsort(-expected)
            assert result.labels == tuple("rgb"[i] for i in order)
            assert np.allclose(result.scores, expected[order], atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_of_any_format_runs_without_a_server(name: str, generated: Path, tmp_path: Path) -> None:
    shutil.copytree(generated / name, tmp_path / name)
    config(tmp_path / name, {"task": "classification", "labels": ["r", "g", "b"], "preprocess": [{"resize": SIZE}]})
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((9, 9, 3), (250, 0, 0), np.uint8))
    weights = find_models(tmp_path / name)[0].weights
    assert weights
    done = command("predict", weights, tmp_path / "blue.png", "--json")
    assert done.returncode == 0, done.stderr
    expected = softmax(np.array([0, 0, 250 / 255], np.float32) + BIAS)
    answer = json.loads(done.stdout)
    answer = answer.get("result", answer)
    assert answer["labels"][0] == "b"
    assert answer["scores"][0] == pytest.approx(expected[2], abs=1e-5)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "onnx"])
def test_onnx_runtime_reads_onnx_only_and_says_who_reads_the_rest(name: str, generated: Path) -> None:
    with pytest.raises(InvalidModel, match="openvino"):
        load(generated / name, backend="onnxruntime")


# Real weights


@pytest.fixture(scope="module")
def real(testdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("real")
    for name in (*SQUEEZENETS, "dummy_ir", "dummy_saved_model", "dummy_tflite", "lenet_tf", "mnist"):
        shutil.copytree(testdata / "models" / name, folder / name)
        for path in folder.glob("**/*"):
            path.chmod(path.stat().st_mode | 0o200)
    for name in ("squeezenet_ir", "squeezenet_tf", "squeezenet_saved_model"):
        config(folder / name, CLASSIFIER)
    for name in ("lenet_tf", "mnist"):
        config(
            folder / name,
            {**DIGITS, **({"preprocess": [{"resize": 28}, {"normalize": {"scale": 1}}]} if name == "mnist" else {})},
        )
    with serving(folder, "--precision", "f32") as server:
        yield server


@pytest.fixture(scope="module")
def reference(testdata: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(testdata / "models" / "squeezenet" / "squeezenet1_1.onnx"))


def prepared(path: Path) -> Array:
    """(1, 3, 224, 224): the short side to 256, the middle 224, ImageNet's mean and deviation."""
    image = np.array(Image.open(path).convert("RGB"))
    height, width = image.shape[:2]
    ratio = 256 / min(height, width)
    image = cv2.resize(image, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_LINEAR)
    top, left = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
    crop = image[top : top + 224, left : left + 224].astype(np.float32) / 255
    out: Array = ((crop - np.array(IMAGENET["mean"], np.float32)) / np.array(IMAGENET["std"], np.float32)).transpose(
        2, 0, 1
    )[None]
    return out


def probabilities(session: ort.InferenceSession, tensor: Array) -> Array:
    (answer,) = session.run(None, {session.get_inputs()[0].name: tensor})
    out: Array = answer.reshape(len(tensor), -1)
    return out


@pytest.mark.parametrize("name", SQUEEZENETS)
def test_squeezenet_of_any_format_sees_what_onnx_runtime_sees(
    name: str, real: Server, reference: ort.InferenceSession, testdata: Path
) -> None:
    """All 100 pictures over HTTP: every probability of each, and how often the best is right."""
    folder = testdata / "images" / "imagenet100"
    with (folder / "labels.csv").open() as file:
        truth = {folder / row["file"]: int(row["index"]) for row in csv.DictReader(file)}
    truth = {path: index for path, index in truth.items() if path.exists()}
    assert len(truth) == 100
    with visionpool.Client(real.url) as client, ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda path: client.predict(name, path, top_k=1000), truth))
    right = 0
    for (path, index), result in zip(truth.items(), results, strict=True):
        assert isinstance(result, ClassifyResult)
        expected = probabilities(reference, prepared(path))[0]
        scores = np.zeros(1000, np.float32)
        scores[list(result.label_ids)] = result.scores
        assert np.abs(scores - expected).max() < SQUEEZENETS[name], path
        right += result.label_ids[0] == index
    assert right == 66


@pytest.mark.parametrize("name", SQUEEZENETS)
def test_squeezenets_tensors_are_onnx_runtimes(name: str, real: Server, reference: ort.InferenceSession) -> None:
    tensor = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    metadata = httpx.get(f"{real.url}/v2/models/{name}").json()
    (taken,) = metadata["inputs"]
    nhwc = "tf" in name or "saved" in name
    assert taken["shape"] == [-1, 224, 224, 3] if nhwc else [-1, 3, 224, 224]
    answer = inferred(real, name, taken["name"], tensor.transpose(0, 2, 3, 1) if nhwc else tensor)
    (scores,) = answer.values()
    assert np.abs(scores.reshape(1, -1) - probabilities(reference, tensor)).max() < SQUEEZENETS[name]


@pytest.mark.parametrize("name", ["dummy_ir", "dummy_saved_model", "dummy_tflite"])
def test_the_dummies_of_the_model_server_add_one(name: str, real: Server) -> None:
    (taken,) = httpx.get(f"{real.url}/v2/models/{name}").json()["inputs"]
    tensor = np.random.default_rng(1).normal(size=(1, 10)).astype(np.float32)
    (answer,) = inferred(real, name, taken["name"], tensor).values()
    assert np.allclose(answer, tensor + 1, atol=1e-6)


def digit(text: str) -> NDArray[np.uint8]:
    """(56, 28, 3): white on black, and twice as high as the model takes it."""
    pixels = np.zeros((28, 28, 3), np.uint8)
    cv2.putText(pixels, text, (5, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
    return np.repeat(pixels, 2, axis=0)


def test_lenet_takes_one_channel_last_and_sees_what_numpy_sees(real: Server, testdata: Path) -> None:
    graph = (testdata / "models" / "lenet_tf" / "frozen_model.pb").read_bytes()
    with visionpool.Client(real.url) as client:
        for text in "012":
            pixels = digit(text)
            grey = cv2.resize(pixels, (28, 28), interpolation=cv2.INTER_LINEAR)[:, :, :1]
            expected = format_models.lenet(graph, grey[None].astype(np.float32) / 255)[0]
            result = client.predict("lenet_tf", cv2.imencode(".png", pixels)[1].tobytes(), top_k=3)
            assert isinstance(result, ClassifyResult)
            assert result.label_ids[0] == int(text) == expected.argmax()
            assert np.allclose(result.scores, np.sort(expected)[::-1], atol=1e-4)


def test_mnist_takes_one_channel_first_and_sees_what_onnx_runtime_sees(real: Server, testdata: Path) -> None:
    session = ort.InferenceSession(str(testdata / "models" / "mnist" / "mnist.onnx"))
    path = testdata / "images" / "photos" / "mnist_28.png"
    grey = np.array(Image.open(path).convert("RGB"))[:, :, 0]
    assert grey.shape == (28, 28)
    expected = softmax(probabilities(session, grey[None, None].astype(np.float32)))[0]
    with visionpool.Client(real.url) as client:
        result = client.predict("mnist", path, top_k=10)
    assert isinstance(result, ClassifyResult)
    assert result.label_ids[0] == 8 == expected.argmax()
    assert np.allclose(result.scores, np.sort(expected)[::-1], atol=1e-4)


def test_pictures_of_any_kind_become_one_grey_channel(tmp_path: Path) -> None:
    """For either layout: the weights of BT.601, and the first channel's arithmetic."""
    for layout in ("NCHW", "NHWC"):
        path = tiny_models.classifier(tmp_path / layout / "m.onnx", channels=1, layout=layout)
        config(
            path.parent,
            {"task": "classification", "preprocess": [{"resize": 32}, {"normalize": {"mean": 0.5, "std": 0.25}}]},
        )
        model = load(path)
        assert model.family
        image = tiny_models.picture(32, 32)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        engine = model.pool.groups[0].engine
        given = model.family.prepare(image).tensors["x"]
        assert np.array_equal(given[:, :, 0], grey)
        (ours,) = engine.clone().infer({"x": np.ascontiguousarray(given[None])}).values()
        tensor = ((grey.astype(np.float32) / 255 - 0.5) / 0.25)[None, None]
        session = ort.InferenceSession(str(path))
        (theirs,) = session.run(None, {"x": tensor if layout == "NCHW" else tensor.transpose(0, 2, 3, 1)})
        assert np.allclose(ours, theirs, atol=1e-4)


def test_a_link_to_a_folder_goes_by_its_own_name(tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path / "versions" / "v3" / "model.onnx")
    models = tmp_path / "models"
    models.mkdir()
    for name in ("current", "stable"):
        (models / name).symlink_to(tmp_path / "versions" / "v3")
    assert [files.name for files in find_models(models)] == ["current", "stable"]
    assert [files.name for files in find_models(models / "current")] == ["current"]
    assert [files.name for files in find_models(models / "current" / "model.onnx")] == ["current"]
    assert [files.name for files in find_models(models / ".." / "versions")] == ["v3"]
