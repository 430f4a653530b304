"""What the settings of INT8 for TensorRT do to accuracy: Q/DQ files in several variants, scored on onnxruntime's CPU provider.

    python -m benchmarks.tensorrt_precision TESTDATA/models/yolov5n TESTDATA/images/imagenet100 TESTDATA/images/coco64 \\
        half=True half=False quietest=10.0 method=Percentile

It says nothing of speed: that is the GPU's.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visionpool_server.backends.onnx_quantization import quantize
from visionpool_server.building.calibration import Calibration
from visionpool_server.building.pictures import choose
from visionpool_server.building.progress import silent
from visionpool_server.building.runner import Runner
from visionpool_server.building.subject import opened
from visionpool_server.evaluation import evaluate, open_model, read_dataset
from visionpool_server.models.loader import Defaults

_METRICS = ("map50_95", "map50", "top1", "top5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder with one .onnx file")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("variants", nargs="*", help="half=True, method=Entropy,quietest=10.0 ...")
    parser.add_argument("--samples", type=int, default=64)
    wish = parser.parse_args()
    (source,) = wish.model.glob("*.onnx")
    print(f"{'as it is':40s} {scored(wish.model, source, wish.dataset)}", flush=True)
    with opened(wish.model, Runner("CPU", "onnxruntime"), 10**8) as subject, tempfile.TemporaryDirectory() as folder:
        assert subject.model.family is not None
        inputs = Calibration(subject, subject.model.family, silent)
        pictures = choose(wish.calibration, wish.samples, lambda _: None, silent).calibration
        for variant in wish.variants:
            target, started = Path(folder) / "int8.onnx", time.monotonic()
            found = quantize(source, target, pictures, inputs, **settings(variant))
            took = time.monotonic() - started
            layers = f"{found.layers} layers, {len(found.noisy)} left out, {took:.0f} s"
            print(f"{variant:40s} {scored(wish.model, target, wish.dataset)} {layers}", flush=True)


def settings(text: str) -> dict[str, Any]:
    pairs = dict(part.split("=") for part in text.split(","))
    known: dict[str, Callable[[str], Any]] = {"half": lambda value: value == "True", "quietest": float, "method": str}
    return {key: known[key](value) for key, value in pairs.items()}


def scored(model: Path, weights: Path, dataset: Path) -> str:
    """`weights` in place of the model's own."""
    with tempfile.TemporaryDirectory() as folder:
        for path in model.iterdir():
            if path.suffix != ".onnx":
                shutil.copy(path, folder)
        (own,) = model.glob("*.onnx")
        shutil.copy(weights, Path(folder) / own.name)
        with open_model(Path(folder), Defaults(backend="onnxruntime")) as subject:
            metrics = evaluate(subject, read_dataset(dataset)).metrics
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in _METRICS if name in metrics)


if __name__ == "__main__":
    main()
