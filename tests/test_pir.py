"""Paddle 3's programs, converted by the real paddle2onnx, against Paddle's own inference: real weights, and a model made here.

Paddle runs in processes of its own: it is large, and not every machine has it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import visionpool
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import ClassifyResult
from visionpool_server.models.conversion import readable
from visionpool_server.models.files import find_models
from visionpool_server.models.loader import Defaults, Model, load_model

from tests import tiny_models
from tests.real_server import Server, serving
from tests.test_cli import visionpool as command
from tests.test_formats import inferred

pytestmark = pytest.mark.skipif(
    find_spec("paddle") is None or find_spec("paddle2onnx") is None,
    reason="the extra `paddle` is not installed: pip install 'visionpool[paddle]'",
)
Array = NDArray[np.float32]

EXPORT = """
import sys, paddle
from paddle import nn
paddle.seed(0)
model = nn.Sequential(nn.Conv2D(3, 8, 3, stride=2, padding=1), nn.BatchNorm2D(8), nn.Hardswish(), nn.AdaptiveAvgPool2D(1),
                      nn.Flatten(), nn.Linear(8, 4), nn.Softmax())
model.eval()
spec = paddle.static.InputSpec([None, 3, 32, 32], "float32", name="picture")
paddle.jit.save(model, sys.argv[1], input_spec=[spec])
"""
INFER = """
import sys, numpy as np
from paddle import inference
for line in sys.stdin:
    program, weights, given, wanted = line.rstrip("\\n").split("\\t")
    config = inference.Config(program, weights)
    config.disable_gpu()
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    (name,) = predictor.get_input_names()
    predictor.get_input_handle(name).copy_from_cpu(np.load(given))
    predictor.run()
    (name,) = predictor.get_output_names()
    np.save(wanted, predictor.get_output_handle(name).copy_to_cpu())
    print("saved", flush=True)
"""
PaddlesOwn = Callable[[Path, Array, Path], Array]


def run_paddle(script: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def paddles_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PaddlesOwn]:
    """What Paddle answers to a batch: one process for all that is asked, since Paddle takes seconds to import."""
    complaints = tmp_path_factory.mktemp("paddle") / "stderr.txt"
    with (
        complaints.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", INFER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdin and process.stdout
        asked, told = process.stdin, process.stdout

        def answer(program: Path, batch: Array, folder: Path) -> Array:
            np.save(folder / "in.npy", batch)
            files = (program, program.with_suffix(".pdiparams"), folder / "in.npy", folder / "out.npy")
            print(*files, sep="\t", file=asked, flush=True)
            assert "saved\n" in told, complaints.read_text()  # reads up to it, or to the end of what it prints
            out: Array = np.load(folder / "out.npy")
            return out

        yield answer


def load(path: Path, **defaults: Any) -> Model:
    (files,) = find_models(path)
    return load_model(files, Defaults(**{"workers": 1, **defaults}))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


# A model made here


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of Paddle 3, under a name of its own."""
    folder = tmp_path_factory.mktemp("made")
    run_paddle(EXPORT, folder / "small")
    return folder / "small.json"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_converted_program_answers_as_paddle_does(
    made: Path, paddles_own: PaddlesOwn, tmp_path: Path, kept: Path, backend: str
) -> None:
    batch = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    model = load(made, backend=backend, cache_dir=kept)
    assert (model.name, model.task) == ("small", "tensor")
    (spec,) = model.signature.inputs
    assert spec.name == "picture"
    engine = model.pool.groups[0].engine
    (ours,) = engine.clone().infer({"picture": batch}).values()
    assert np.allclose(ours, paddles_own(made, batch, tmp_path), atol=1e-5)


# PP-LCNet, which tells whether a line of text is upside down


@pytest.fixture
def textline(testdata: Path) -> Path:
    return testdata / "models" / "pplcnet_textline_pir"


@pytest.fixture(scope="module")
def server(testdata: Path, kept: Path) -> Iterator[Server]:
    with serving(testdata / "models" / "pplcnet_textline_pir", "--cache-dir", kept, "--precision", "f32") as running:
        yield running


def pictures(testdata: Path) -> list[NDArray[np.uint8]]:
    """Strips of the pictures of text, as they are and upside down, and a picture of anything. RGB."""
    found = []
    for path in sorted((testdata / "images" / "ocr").glob("*.jpg"))[:3]:
        strip = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)[:60]
        found += [strip, np.ascontiguousarray(strip[::-1, ::-1])]
    return [*found, tiny_models.picture(50, 333)]


def prepared(image: NDArray[np.uint8]) -> Array:
    """(3, 80, 160), as inference.yml says: 160 wide, 80 high, scaled, ImageNet's mean and deviation."""
    resized = cv2.resize(image, (160, 80), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    out: Array = ((resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1).astype(np.float32)
    return out


def encoded(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_folder_and_its_program_need_no_configuration(textline: Path, kept: Path, backend: str) -> None:
    for path in (textline, textline / "inference.json"):
        model = load(path, backend=backend, cache_dir=kept)
        assert (model.name, model.source) == ("pplcnet_textline_pir", "inference.yml")
        assert (model.task, model.labels) == ("classification", ("0_degree", "180_degree"))
        assert model.family
        assert model.family.recipe.output_size() == (80, 160)
        assert model.family.defaults.top_k == 1


def test_a_picture_gets_over_http_what_paddle_sees(
    server: Server, textline: Path, testdata: Path, paddles_own: PaddlesOwn, tmp_path: Path
) -> None:
    images = pictures(testdata)
    theirs = paddles_own(textline / "inference.json", np.stack([prepared(image) for image in images]), tmp_path)
    assert {int(row.argmax()) for row in theirs} == {0, 1}
    with visionpool.Client(server.url) as client:
        for image, expected in zip(images, theirs, strict=True):
            result = client.predict("pplcnet_textline_pir", encoded(image), top_k=2)
            assert isinstance(result, ClassifyResult)
            scores = dict(zip(result.label_ids, result.scores, strict=True))
            assert result.labels[0] == ("0_degree", "180_degree")[expected.argmax()]
            assert np.allclose([scores[0], scores[1]], expected, atol=1e-4)


def test_tensors_get_over_kserve_what_paddle_sees(
    server: Server, textline: Path, paddles_own: PaddlesOwn, tmp_path: Path
) -> None:
    batch = np.random.default_rng(0).normal(size=(1, 3, 80, 160)).astype(np.float32)
    (answer,) = inferred(server, "pplcnet_textline_pir", "x", batch).values()
    assert np.allclose(answer, paddles_own(textline / "inference.json", batch, tmp_path), atol=1e-4)
    config = httpx.get(f"{server.url}/v1/models/pplcnet_textline_pir").json()
    assert config["name"] == "pplcnet_textline_pir"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_it_runs_without_a_server(
    textline: Path, testdata: Path, paddles_own: PaddlesOwn, tmp_path: Path, kept: Path, backend: str
) -> None:
    image = pictures(testdata)[0]
    (tmp_path / "line.png").write_bytes(encoded(image))
    environment = {"XDG_CACHE_HOME": str(kept)}
    arguments = ("predict", textline / "inference.json", tmp_path / "line.png", "--json", "--backend", backend)
    done = command(*arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    (expected,) = paddles_own(textline / "inference.json", prepared(image)[None], tmp_path)
    answer = json.loads(done.stdout)
    answer = answer.get("result", answer)
    assert answer["label_ids"] == [int(expected.argmax())]
    assert answer["scores"][0] == pytest.approx(expected.max(), abs=1e-4)


# Damaged files


def test_whatever_becomes_of_the_files_the_answer_is_a_model_or_a_refusal(textline: Path, tmp_path: Path) -> None:
    """The converter aborts on some of these, and makes a model out of what lies in memory of others."""
    dice = random.Random(0)
    program, weights = ((textline / f"inference.{kind}").read_bytes() for kind in ("json", "pdiparams"))
    refusals = 0
    for attempt in range(12):
        damaged = {"json": bytearray(program), "pdiparams": bytearray(weights)}
        kind = ("json", "pdiparams")[attempt % 2]
        if attempt % 3:
            del damaged[kind][dice.randrange(1, len(damaged[kind])) :]
        else:
            for place in (dice.randrange(64), *(dice.randrange(len(damaged[kind])) for _ in range(5))):
                damaged[kind][place] = dice.randrange(256)
        for name, content in damaged.items():
            (tmp_path / f"inference.{name}").write_bytes(content)
        try:
            assert readable(tmp_path / "inference.json", tmp_path / "kept").stat().st_size
        except InvalidModel as error:
            refusals += 1
            assert error.message.startswith("inference.")
            assert error.hint
    assert refusals > 8


def test_weights_cut_within_a_tensor_are_refused_wherever_they_are_cut(textline: Path, tmp_path: Path) -> None:
    shutil.copy(textline / "inference.json", tmp_path)
    weights = (textline / "inference.pdiparams").read_bytes()
    dice = random.Random(1)
    for size in (len(weights) - 1, *(dice.randrange(len(weights)) for _ in range(100))):
        (tmp_path / "inference.pdiparams").write_bytes(weights[:size])
        with pytest.raises(InvalidModel, match=r"ends within a tensor|do not fit"):
            readable(tmp_path / "inference.json", tmp_path / "kept")


def test_nothing_is_printed_by_the_conversion(textline: Path, tmp_path: Path) -> None:
    script = "import sys\nfrom pathlib import Path\nfrom visionpool_server.models.conversion import readable\n"
    script += "readable(Path(sys.argv[1]), Path(sys.argv[2]))\nprint('paddle' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(textline / "inference.json"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "GLOG_v": "3"},
        timeout=200,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
