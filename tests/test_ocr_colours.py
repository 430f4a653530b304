"""Models that want BGR get it, whatever their graph does with its input besides: a recogniser reads its shape too.

OpenVINO 2026.4 loses `reverse_channels` in such a graph where the batch is open, and says nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from visionpool_server.backends import ImageInput, LoadOptions, Source, get_backend
from visionpool_server.imaging.recipe import Arithmetic

from tests.tiny_models import Graph

ARITHMETIC = Arithmetic(mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7), channels="bgr")


def recurrent(path: Path) -> Path:
    """As recognisers begin: a convolution, and a state whose size is the batch's."""
    graph = Graph()
    picture = graph.input("x", ["batch", 3, 8, "width"])
    features = graph.add("Conv", picture, graph.weights(4, 3, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    batch = graph.add("Gather", graph.add("Shape", picture), graph.constant([0], np.int64))
    size = graph.add("Concat", batch, graph.constant([4, 1, 1], np.int64), axis=0)
    state = graph.add("Expand", graph.constant([0.25]), size)
    graph.add("Add", features, state, output="y")
    graph.output("y", ["batch", 4, 8, "width"])
    return graph.save(path)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_red_and_blue_change_places(tmp_path: Path, backend: str, dtype: str) -> None:
    file = recurrent(tmp_path / "model.onnx")
    image = ImageInput("x", "NCHW", ARITHMETIC, None, "uint8" if dtype == "uint8" else "float32")
    engine = get_backend(backend).load(Source(file), LoadOptions(image=image, max_batch_size=4))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(5)
    for rows, width in ((1, 12), (3, 20), (1, 12)):
        pictures = random.integers(0, 256, (rows, 8, width, 3)).astype(np.uint8)
        given = pictures if dtype == "uint8" else pictures + np.float32(0.5)
        normal = (given[..., ::-1] / 255 - np.array(ARITHMETIC.mean)) / np.array(ARITHMETIC.std)
        (expected,) = session.run(None, {"x": normal.transpose(0, 3, 1, 2).astype(np.float32)})
        told = engine.clone().infer({"x": given})["y"]
        np.testing.assert_allclose(told, expected, atol=1e-4)
