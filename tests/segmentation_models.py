"""Small ONNX files with the endings of real segmentation, matting and embedding exports, and the whole flow without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from visionpool.results import Result
from visionpool_server.app import offline
from visionpool_server.families import NO_OPTIONS, Options
from visionpool_server.models.loader import Defaults
from visionpool_server.service import Ask

from tests.ort_sessions import reference_session
from tests.tiny_models import Graph

Predict = Callable[..., Any]
BACKENDS = ("openvino", "onnxruntime")
CELL = 8  # pixels of the picture to a feature
ENDINGS = ("logits", "softmax", "nhwc", "argmax", "argmax4", "sigmoid", "one_logit", "aux", "small", "alpha", "plane")


def segmenter(path: Path, ending: str, *, classes: int = 4, size: tuple[int, int] | None = None, seed: int = 0) -> Path:
    """Output by `ending`: `logits` or `softmax` (N, C, H, W), `nhwc` (N, H, W, C) logits, `argmax` (N, H, W) int64,
    `argmax4` (N, 1, H, W) int32, `sigmoid` and `one_logit` (N, 1, H, W), `alpha` the same clipped, `plane` (N, H, W),
    `aux`: `aux` before `out`, `small`: logits of a quarter of the size. `size` None: any multiple of `CELL`.
    """
    graph = Graph(seed)
    sides: Sequence[int | str] = size or ("height", "width")
    picture = graph.input("x", ["batch", 3, *sides])
    features = graph.patches(picture, 8, CELL, spread=3.0)
    one = ending in ("sigmoid", "one_logit", "alpha", "plane")
    channels = 1 if one else classes
    step = 2 if ending == "small" else CELL
    weights = graph.weights(8, channels, step, step, spread=1.0)
    raw = graph.add("ConvTranspose", features, weights, kernel_shape=[step] * 2, strides=[step] * 2)
    kind, shape = TensorProto.FLOAT, ["batch", channels, *sides]
    name = "out" if ending == "aux" else "y"
    match ending:
        case "softmax":
            graph.add("Identity", graph.add("Softmax", raw, axis=1), output=name)
        case "nhwc":
            graph.add("Transpose", raw, output=name, perm=[0, 2, 3, 1])
            shape = ["batch", *sides, channels]
        case "argmax" | "argmax4":
            best = graph.add("ArgMax", raw, axis=1, keepdims=int(ending == "argmax4"))
            kind = TensorProto.INT32 if ending == "argmax4" else TensorProto.INT64
            graph.add("Cast", best, to=kind, output=name)
            shape = ["batch", 1, *sides] if ending == "argmax4" else ["batch", *sides]
        case "sigmoid":
            graph.add("Sigmoid", raw, output=name)
        case "alpha" | "plane":
            half = graph.add("Add", raw, graph.constant([0.5]))
            clipped = graph.add("Clip", half, graph.constant(0.0), graph.constant(1.0))
            if ending == "plane":
                graph.add("Squeeze", clipped, graph.constant([1], np.int64), output=name)
                shape = ["batch", *sides]
            else:
                graph.add("Identity", clipped, output=name)
        case "aux":
            graph.add("Mul", raw, graph.constant([-1.0]), output="aux")
            graph.output("aux", shape)
            graph.add("Mul", raw, graph.constant([1.0]), output=name)
        case _:
            graph.add("Identity", raw, output=name)
            shape = ["batch", channels, "rows", "columns"] if ending == "small" else shape
    graph.output(name, shape, kind)
    return graph.save(path)


def classifier(path: Path, ending: str, *, classes: int = 6, size: int = 32, seed: int = 0) -> Path:
    """Output `y` (N, classes) by `ending`: `logits`, `softmax`, `sigmoid`; `averaged` ends in a mean that tells nothing,
    `vector` is (N, classes, 1, 1)."""
    graph = Graph(seed)
    picture = graph.input("x", ["batch", 3, size, size])
    features = graph.add("Relu", graph.patches(picture, 16, 8, spread=2.0))
    raw = graph.add("Conv", features, graph.weights(classes, 16, 1, 1), graph.weights(classes), kernel_shape=[1, 1])
    pooled = graph.add("GlobalAveragePool", raw)
    if ending == "vector":
        graph.add("Identity", pooled, output="y")
        graph.output("y", ["batch", classes, 1, 1])
        return graph.save(path)
    flat = graph.add("Flatten", pooled)
    match ending:
        case "softmax" | "sigmoid":
            attributes: dict[str, Any] = {"axis": 1} if ending == "softmax" else {}
            graph.add("Identity", graph.add(ending.capitalize(), flat, **attributes), output="y")
        case "averaged":
            graph.add("Identity", flat, output="y")
        case _:
            graph.add("Gemm", flat, graph.weights(classes, classes), graph.weights(classes), output="y")
    graph.output("y", ["batch", classes])
    return graph.save(path)


def run(model: Path, tensor: NDArray[Any], output: str | None = None) -> NDArray[Any]:
    """What ONNX Runtime makes of `tensor`: the output of that name, or the first."""
    session = reference_session(model)
    names = [node.name for node in session.get_outputs()]
    return np.asarray(session.run([output or names[0]], {session.get_inputs()[0].name: tensor})[0])


def planes(image: NDArray[np.uint8], mean: Any = 0.5, std: Any = 0.5, scale: float = 1 / 255) -> NDArray[np.float32]:
    """(H, W, 3) as (1, 3, H, W), each channel `(x * scale - mean) / std`."""
    values: NDArray[np.float32] = ((image * scale - np.array(mean)) / np.array(std)).astype(np.float32)
    return values.transpose(2, 0, 1)[None]


@contextmanager
def served(model: Path, backend: str) -> Iterator[Predict]:
    """`predict(image, **options)`, decoded from a PNG; `predict.model` is the model that runs, `predict.many`
    takes several pictures at once."""
    with offline([model], Defaults(backend=backend, precision="f32"), max_pixels=50_000_000) as service:
        (running,) = service.models

        def predict(image: NDArray[np.uint8], **options: Any) -> Result:
            _, data = cv2.imencode(".png", image[:, :, ::-1])
            ask = Ask(Options(**options) if options else NO_OPTIONS, timeout=100)
            return asyncio.run(service.predict(running, data.tobytes(), ask)).result

        def many(images: Sequence[NDArray[np.uint8]]) -> list[Result]:
            files = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in images]
            return [each.result for each in asyncio.run(service.predict_many(running, files, Ask(timeout=100)))]

        predict.model = running  # type: ignore[attr-defined]
        predict.many = many  # type: ignore[attr-defined]
        yield predict
