"""The models and pictures that are measured with: made here, or real ones where the machine has them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks import memory
from benchmarks.on_gpu.report import NotRun

SIZE = memory.SIZE
INPUT, OUTPUT = "image", "logits"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Models:
    """`folder`: for what is made. `yolov5n`, `picture`: files; None: VISIONPOOL_TESTDATA's. `width`: of the ResNet's first
    layer; 64 is the usual one."""

    folder: Path
    yolov5n: Path | None = None
    picture: Path | None = None
    width: int = 64

    @cached_property
    def resnet(self) -> Path:
        """Made once for all sections."""
        path = self.folder / "resnet50.onnx"
        return path if path.is_file() else memory.resnet50(path.with_suffix(".part"), width=self.width).rename(path)

    def detector(self) -> Path:
        """YOLOv5n with an open batch. Raises NotRun."""
        return self._found(self.yolov5n, "models/yolov5n_dyn/yolov5n_dyn.onnx", "--yolov5n FILE")

    def jpeg(self, size: tuple[int, int]) -> bytes:
        """A photograph, or where there is none something as smooth of `size` (height, width)."""
        try:
            return self._found(self.picture, "images/photos/bus.jpg", "--picture FILE").read_bytes()
        except NotRun:
            written, data = cv2.imencode(".jpg", picture(size, 1)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
            assert written
            return bytes(data.tobytes())

    def _found(self, said: Path | None, usual: str, flag: str) -> Path:
        testdata = os.environ.get("VISIONPOOL_TESTDATA")
        path = said or (Path(testdata) / usual if testdata else None)
        if path is None or not path.is_file():
            raise NotRun(f"no {path.name if path else Path(usual).name} here: {flag}, or VISIONPOOL_TESTDATA")
        return path


def served(folder: Path, runtime: dict[str, Any], weights: Path | None = None, **more: Any) -> Path:
    """A folder with a model.yaml, and the weights where they are not written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump({**more, "runtime": runtime}))
    if weights:
        (folder / weights.name).symlink_to(weights.resolve())
    return folder


CLASSIFIER: dict[str, Any] = {
    "task": "classification",
    "preprocess": [
        {"resize_short": 256},
        {"center_crop": SIZE},
        {"normalize": {"scale": 1 / 255, "mean": list(_MEAN), "std": list(_STD)}},
    ],
}


def picture(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """(height, width, 3) RGB, as smooth as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[0] // 4 + 1, size[1] // 4 + 1, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (size[1], size[0]), interpolation=cv2.INTER_CUBIC), np.uint8)


def tensors(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """(rows, 3, SIZE, SIZE), as normalised pictures are."""
    return np.random.default_rng(seed).standard_normal((rows, 3, SIZE, SIZE), np.float32)
