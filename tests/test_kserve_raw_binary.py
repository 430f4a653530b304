"""Raw binary requests (Triton's binary tensor data extension): a body that is one tensor, without a word of JSON."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests import tiny_models
from tests.kserve_models import Array, operator, raw_bytes, weights, write_yaml
from tests.real_server import Server, serving

HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    operator(folder / "rows", "Identity", "FP32", ["n", 4])
    operator(folder / "columns", "Identity", "INT32", [3, "m"])
    operator(folder / "loose", "Identity", "FP32", ["n", "a", "b"])
    operator(folder / "sum", "Add", "FP32", ["n", 4], ("a", "b"))
    for name, size in (("text", 1), ("texts", 2)):
        operator(folder / name, "Identity", "BYTES", ["n", size])
        write_yaml(folder / name, runtime={"backend": "onnxruntime"})
    tiny_models.classifier(weights(folder / "classifier"), softmax=True)
    write_yaml(folder / "classifier", task="classification", labels=list("abcde"), preprocess=[{"resize": [32, 32]}])
    with serving(folder) as running:
        yield running


def asked(server: Server, model: str, body: bytes, **headers: str) -> httpx.Response:
    url = f"{server.url}/v2/models/{model}/infer"
    return httpx.post(url, content=body, headers={HEADER: "0", **headers}, timeout=60)


def told(answer: httpx.Response) -> tuple[list[int], bytes]:
    """The shape of the one output, and its bytes."""
    assert answer.status_code == 200, answer.text
    head = int(answer.headers[HEADER])
    (output,) = json.loads(answer.content[:head])["outputs"]
    assert output["parameters"] == {"binary_data_size": len(answer.content) - head}
    return output["shape"], answer.content[head:]


@pytest.mark.parametrize(
    ("model", "array"),
    [
        ("rows", np.arange(4, dtype=np.float32).reshape(1, 4)),
        ("columns", np.arange(6, dtype=np.int32).reshape(3, 2)),
        ("columns", np.arange(30, dtype=np.int32).reshape(3, 10)),
    ],
)
def test_the_shape_is_the_models_and_as_long_as_the_body_makes_it(server: Server, model: str, array: Array) -> None:
    assert told(asked(server, model, array.tobytes())) == (list(array.shape), array.tobytes())
    squeezed = asked(server, model, gzip.compress(array.tobytes()), **{"Content-Encoding": "gzip"})
    assert told(squeezed) == (list(array.shape), array.tobytes())


def test_a_string_comes_without_its_length_and_is_answered_with_it(server: Server) -> None:
    shape, data = told(asked(server, "text", "größe".encode()))
    assert (shape, data) == ([1, 1], raw_bytes(np.array(["größe".encode()], object)))


def test_a_vision_model_takes_its_own_tensor_and_gives_its_own_outputs(server: Server) -> None:
    array = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    url = f"{server.url}/v2/models/classifier"
    name = httpx.get(url).json()["inputs"][0]["name"]
    said = {"name": name, "datatype": "FP32", "shape": [1, 3, 32, 32], "data": array.ravel().tolist()}
    (expected,) = httpx.post(f"{url}/infer", json={"inputs": [said]}, timeout=60).json()["outputs"]
    shape, data = told(asked(server, "classifier", array.tobytes()))
    assert shape == expected["shape"]
    assert np.frombuffer(data, np.float32) == pytest.approx(expected["data"], abs=1e-6)


@pytest.mark.parametrize(
    ("model", "size", "status", "says"),
    [
        ("nobody", 16, 404, "nobody"),
        ("sum", 16, 400, "sum has 2 inputs, and a raw binary request brings one"),
        ("loose", 16, 400, "FP32 of shape [1, -1, -1], which the size of a body does not tell"),
        ("texts", 16, 400, "BYTES of shape [1, 2], which the size of a body does not tell"),
        ("rows", 15, 400, "15 bytes of data, and shape [1, 4] of FP32 takes 16"),
        ("rows", 32, 400, "32 bytes of data, and shape [1, 4] of FP32 takes 16"),
        ("columns", 25, 400, "25 bytes of data, and shape [3, 2] of INT32 takes 24"),
    ],
)
def test_what_the_size_of_a_body_does_not_tell_is_refused(
    server: Server, model: str, size: int, status: int, says: str
) -> None:
    answer = asked(server, model, bytes(size))
    assert answer.status_code == status
    assert says in answer.json()["error"]


def test_a_refusal_says_what_to_send_instead(server: Server) -> None:
    assert "Inference-Header-Content-Length" in asked(server, "sum", bytes(16)).json()["error"]
