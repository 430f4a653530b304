"""Resident memory of clones against separately loaded models, for weights of ResNet-50's size.

    python -m benchmarks.memory [--backend openvino|onnxruntime] [--copies 1 2 3 4] [--model resnet50.onnx]

Each figure is of a fresh process that does nothing else: the backend loads the model, makes so many clones (or loads it so
many times), and all of them predict at once, on a thread each. The table is laid out as in FastDeploy's page on
multi-threaded prediction. Without `--model`, a ResNet-50 with random weights is made for the occasion.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 224
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width and blocks of each (arXiv:1512.03385, table 1)
EXPANSION = 4
PREDICTIONS = 3  # of each clone, so that whatever is allocated late is there


@dataclass(frozen=True, slots=True)
class Usage:
    """Resident memory of a process in MB (10^6 bytes)."""

    created: float
    predicted: float


def resnet50(path: Path, *, width: int = 64) -> Path:
    """Writes a ResNet-50 with random weights as ONNX: 25.5 million parameters at the usual `width`."""
    import onnx

    network = _Network()
    features = network.relu(network.conv("image", 3, width, kernel=7, stride=2))
    features = network.add("MaxPool", features, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = width
    for stage, (base, blocks) in enumerate(STAGES):
        inner = base * width // 64
        for block in range(blocks):
            features = network.bottleneck(features, channels, inner, stride=2 if stage and not block else 1)
            channels = inner * EXPANSION
    pooled = network.add("Flatten", network.add("GlobalAveragePool", features))
    network.add("Gemm", pooled, network.weights(channels, 1000), network.weights(1000), output="logits")
    onnx.save(network.model(), str(path))
    return path


class _Network:
    """An ONNX graph as it grows. Batch normalisation is folded into the convolutions, as exporters do."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weights(self, *shape: int) -> str:
        from onnx import numpy_helper

        name = f"w{len(self._weights)}"
        spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        values = self._random.normal(0, spread, shape).astype(np.float32)
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = output or f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, features: str, inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> str:
        weights, biases = self.weights(outputs, inputs, kernel, kernel), self.weights(outputs)
        return self.add("Conv", features, weights, biases, strides=[stride] * 2, pads=[kernel // 2] * 4)

    def relu(self, features: str) -> str:
        return self.add("Relu", features)

    def bottleneck(self, features: str, inputs: int, inner: int, *, stride: int) -> str:
        outputs = inner * EXPANSION
        path = self.relu(self.conv(features, inputs, inner, kernel=1))
        path = self.relu(self.conv(path, inner, inner, kernel=3, stride=stride))
        path = self.conv(path, inner, outputs, kernel=1)
        same = stride == 1 and inputs == outputs
        shortcut = features if same else self.conv(features, inputs, outputs, kernel=1, stride=stride)
        return self.relu(self.add("Add", path, shortcut))

    def model(self) -> Any:
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self._nodes,
            "resnet50",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])],
            self._weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def measure(model: Path, backend: str, copies: int, *, cloned: bool) -> Usage:
    """The memory of a fresh process with so many clones of one engine, or so many engines."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", backend, str(copies), str(int(cloned)), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Usage(**json.loads(done.stdout))


def _child(backend_name: str, copies: int, cloned: bool, model: Path) -> Usage:
    import psutil
    from visionpool_server.backends import ImageInput, LoadOptions, Source, get_backend
    from visionpool_server.imaging.recipe import Arithmetic

    def resident() -> float:
        return float(psutil.Process().memory_info().rss) / 1e6

    image = ImageInput("image", "NCHW", Arithmetic(), (SIZE, SIZE))
    backend = get_backend(backend_name)
    options = LoadOptions(image=image, contexts=copies if cloned else 1)
    engines = [backend.load(Source(model), options) for _ in range(1 if cloned else copies)]
    contexts = [engines[0].clone() for _ in range(copies)] if cloned else [engine.clone() for engine in engines]
    created = resident()
    together = threading.Barrier(copies)

    def predict(index: int) -> None:
        picture = np.full((1, SIZE, SIZE, 3), 40 * index, np.uint8)
        for _ in range(PREDICTIONS):
            together.wait()
            contexts[index].infer({"image": picture})

    threads = [threading.Thread(target=predict, args=(index,)) for index in range(copies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Usage(created, resident())


def table(rows: dict[int, tuple[Usage, Usage]]) -> str:
    """Markdown: copies -> (clones, separate models)."""
    first = rows[min(rows)][0].predicted
    lines = [
        "| copies | clones, after create | clones, after predict | over one | separate, after create | separate, after predict |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for copies, (clones, separate) in rows.items():
        share = f"{clones.predicted / first - 1:+.1%}"
        figures = f"{clones.created:.0f} MB | {clones.predicted:.0f} MB | {share}"
        lines.append(f"| {copies} | {figures} | {separate.created:.0f} MB | {separate.predicted:.0f} MB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--model", type=Path)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = said.model or resnet50(Path(folder) / "resnet50.onnx")
        rows = {}
        for copies in said.copies:
            clones, separate = (measure(model, said.backend, copies, cloned=cloned) for cloned in (True, False))
            rows[copies] = (clones, separate)
            print(f"{copies}: clones {clones.predicted:.0f} MB, separate {separate.predicted:.0f} MB", file=sys.stderr)
        print(f"ResNet-50, {model.stat().st_size / 1e6:.0f} MB of weights, {said.backend}, CPU, f32, batch 1\n")
        print(table(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, _backend, _copies, _cloned, _model = sys.argv
        _usage = _child(_backend, int(_copies), _cloned == "1", Path(_model))
        print(json.dumps({"created": _usage.created, "predicted": _usage.predicted}))
    else:
        main()
