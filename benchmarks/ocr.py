"""Pages read a second by the OCR pipeline over HTTP, as a ratio to a plain loop over the same steps, in the same run.

    python -m benchmarks.ocr [--picture page.jpg] [--seconds 4] [--rounds 5] [--concurrency 1 --concurrency 8] [--batch 8]

Needs VISIONPOOL_TESTDATA. The loop is what one writes by hand: one page after the other, one line after the other, each
model compiled by OpenVINO for the lowest latency, so that every inference has all cores. It prepares, cuts out and reads
with the functions of the server, that the ratio tells of the serving alone: queues, threads, and lines side by side.
`--batch` gives the steps that `batching.max_batch_size`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from visionpool.results import ClassifyResult, OCRResult
from visionpool_server.backends.openvino import core
from visionpool_server.families import NO_OPTIONS, Family, FamilySpec
from visionpool_server.families.ocr_detection import OcrDetection
from visionpool_server.families.ocr_direction import OcrDirection
from visionpool_server.families.ocr_recognition import OcrRecognition
from visionpool_server.imaging.crops import crop, upside_down
from visionpool_server.imaging.decode import decode
from visionpool_server.imaging.recipe import Geometry, Image
from visionpool_server.reading.lines import lines_of, result_of, whole

from benchmarks.http import ask, report, server

STEPS = {
    "det": "ppocr_det/ch_PP-OCRv3_det.onnx",
    "cls": "ppocr_cls/ch_ppocr_mobile_v2.0_cls.onnx",
    "rec": "ppocr_rec_en/en_number_mobile_v2.0_rec.onnx",
}
DICTIONARY = "ppocr_rec_en/en_dict.txt"


class Step:
    """One model as a plain function of pixels."""

    def __init__(self, kind: Any, weights: Path, **said: Any) -> None:
        model = core().read_model(weights)
        name, output = model.input(0).any_name, model.output(0).any_name
        shapes = [
            tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
            for port in (model.input(0), model.output(0))
        ]
        self._family: Family = kind(FamilySpec({name: shapes[0]}, {output: shapes[1]}, **said))
        self._compiled = core().compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )
        self._input, self._output = name, output

    def __call__(self, image: Image) -> Any:
        prepared = self._family.prepare(image, Geometry(*image.shape[:2]))
        arithmetic = self._family.recipe.arithmetic
        pixels = prepared.tensors[self._input][None]
        outputs = self._compiled([arithmetic.apply(pixels, "NCHW", np.dtype(np.float32))])
        (part,) = self._family.split({self._output: outputs[0]}, 1)
        return self._family.finish(part, prepared.geometry, NO_OPTIONS)


class Loop:
    """The whole pipeline by hand."""

    def __init__(self, models: Path, picture: bytes) -> None:
        labels = tuple((models / DICTIONARY).read_text(encoding="utf-8").splitlines())
        self._picture = picture
        self._detect = Step(OcrDetection, models / STEPS["det"])
        self._classify = Step(OcrDirection, models / STEPS["cls"])
        self._read = Step(OcrRecognition, models / STEPS["rec"], labels=labels, input_size=(32, 320))

    def once(self) -> OCRResult:
        image = decode(self._picture)
        found = lines_of(self._detect(image)) or [whole(image)]
        for line in found:
            cut = crop(image, line.quad)
            seen: ClassifyResult = self._classify(cut)
            line.says(seen, 0.9)
            told: OCRResult = self._read(upside_down(cut) if line.turned else cut)
            line.text, line.score = told.text[0], told.rec_scores[0]
        return result_of(found, 0.5)

    def measure(self, seconds: float) -> float:
        """Pages a second."""
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            self.once()
            count += 1
        return count / (time.perf_counter() - started)


def pipeline_folder(models: Path, batch: int | None, folder: Path) -> Path:
    """The three models beside one model.yaml, with `batch` in that of each."""
    pipeline = folder / "ocr"
    batching = f"batching: {{max_batch_size: {batch}}}\n" if batch else ""
    for step, weights in STEPS.items():
        (pipeline / step).mkdir(parents=True)
        shutil.copyfile(models / weights, pipeline / step / Path(weights).name)
        (pipeline / step / "model.yaml").write_text(f"task: {'classification' if step == 'cls' else 'ocr'}\n{batching}")
    shutil.copyfile(models / DICTIONARY, pipeline / "en_dict.txt")
    (pipeline / "model.yaml").write_text("task: ocr\n")
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--concurrency", action="append", type=int)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int)
    asked = parser.parse_args()
    data = os.environ.get("VISIONPOOL_TESTDATA")
    if not data:
        sys.exit("set VISIONPOOL_TESTDATA to the folder with the real models and pictures")
    picture = asked.picture or Path(data) / "images/ocr/fastdeploy_ocr.jpg"
    measure(Path(data) / "models", picture, asked)


def measure(models: Path, picture: Path, asked: argparse.Namespace) -> None:
    concurrencies = asked.concurrency or [1, 8, 32]
    loop = Loop(models, picture.read_bytes())
    print(f"{picture.name}, {len(loop.once().text)} lines, {asked.rounds} rounds of {asked.seconds:g} s")
    with (
        tempfile.TemporaryDirectory() as folder,
        server(pipeline_folder(models, asked.batch, Path(folder))) as address,
    ):
        loop.measure(1.0)
        ask(address, "ocr", picture, 8, 2.0)
        bare: list[float] = []
        answers: dict[int, list[dict[str, float]]] = {c: [] for c in concurrencies}
        for _ in range(asked.rounds):
            bare.append(loop.measure(asked.seconds))
            for concurrency in concurrencies:
                answers[concurrency].append(ask(address, "ocr", picture, concurrency, asked.seconds))
        report(bare, answers)


if __name__ == "__main__":
    main()
