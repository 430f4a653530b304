"""What the arithmetic on a picture costs: done by OpenCV before the inference, or compiled into the OpenVINO graph.

    python -m benchmarks.arithmetic

On a model that does nothing but average each channel, so that only the way in is measured: a 640x640 picture by
`cv2.dnn.blobFromImage` into a float32 input, and the same picture as uint8 through our backend.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper
from visionpool_server.backends import ImageInput, LoadOptions, Source
from visionpool_server.backends.openvino import OpenVinoBackend, core
from visionpool_server.imaging.recipe import Arithmetic

SIZE = 640
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def averaging_model(path: Path) -> None:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    means = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 1, 1])
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["x"], ["y"])], "means", [image], [means])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def milliseconds(run: Callable[[], object], times: int = 200) -> float:
    """CPU time of the process for one run, in milliseconds."""
    run()
    started = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - started) / times * 1e3


def main() -> None:
    cv2.setNumThreads(1)
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "means.onnx"
        averaging_model(path)
        plain = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        image = ImageInput("x", "NCHW", Arithmetic(1 / 255, MEAN, STD), (SIZE, SIZE))
        ours = OpenVinoBackend().load(Source(path), LoadOptions(image=image, contexts=1)).clone()

        def by_opencv() -> object:
            blob = np.asarray(cv2.dnn.blobFromImage(picture, 1 / 255, mean=[m * 255 for m in MEAN], swapRB=True))
            return plain.infer([blob / np.array(STD, np.float32).reshape(1, 3, 1, 1)])[0]

        def compiled_in() -> object:
            return ours.infer({"x": picture[None]})["y"]

        rounds = [(milliseconds(by_opencv), milliseconds(compiled_in)) for _ in range(5)]
    blob, graph = (statistics.median(column) for column in zip(*rounds, strict=True))
    sys.stdout.write(
        "| the arithmetic on a 640x640 picture, with an inference that does next to nothing | CPU ms |\n|---|---|\n"
        f"| cv2.dnn.blobFromImage and a division, then float32 NCHW | {blob:.2f} |\n"
        f"| uint8 NHWC, compiled into the graph | {graph:.2f} |\n\nratio: {blob / graph:.1f}\n"
    )


if __name__ == "__main__":
    main()
