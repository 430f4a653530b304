"""Pictures a second over HTTP, as a ratio to the same work without a server, in the same run.

    python -m benchmarks.http [--case yolov5n] [--seconds 4] [--rounds 5] [--concurrency 1 --concurrency 8] [--decode fast]

Needs VISIONPOOL_TESTDATA. Each round measures the hand-written loop (benchmarks.noserver: two threads, two OpenVINO
streams, plain OpenCV and blobFromImage, f32) and then the server at each concurrency, with the load generator on the same
cores; the ratio is the median over the rounds. Absolute numbers say little on a shared machine, the ratio says it all.
The loop always decodes in full; `--decode fast` is about the server.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from benchmarks.noserver import Loop

CASES = {
    "yolov5n": ("models/yolov5n/yolov5n.onnx", "images/photos/bus.jpg", (810, 1080)),
    "squeezenet": ("models/squeezenet/squeezenet1_1.onnx", "images/photos/dog.jpg", (768, 576)),
}


@contextmanager
def server(model: Path) -> Iterator[tuple[str, int]]:
    """A real server process; its host and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "visionpool", "serve", str(model), "--http-port", "0", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"ready at http://([0-9.]+):(\d+)", line):
                yield found[1], int(found[2])
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.wait(30)


def ask(address: tuple[str, int], name: str, picture: Path, concurrency: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.load", *map(str, address), f"/v1/models/{name}/predict", str(picture)]
    command += ["--concurrency", str(concurrency), "--seconds", str(seconds)]
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def picture_of(source: Path, size: tuple[int, int], folder: Path) -> Path:
    """`source` as it is where it has that size (width, height), else resized to it, quality 90."""
    image = cv2.imread(str(source))
    assert image is not None
    if (image.shape[1], image.shape[0]) == size:
        return source
    path = folder / f"{source.stem}.jpg"
    cv2.imwrite(str(path), cv2.resize(image, size, interpolation=cv2.INTER_AREA), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return path


def model_folder(weights: Path, decode: str, folder: Path) -> Path:
    """A copy of the model's folder, with the way of decoding written into its model.yaml."""
    copy = folder / weights.parent.name
    shutil.copytree(weights.parent, copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    config = copy / "model.yaml"
    said = config.read_text() if config.exists() else ""
    config.write_text(f"{said}\ndecode: {decode}\n")
    return copy


def measure(name: str, data: Path, asked: argparse.Namespace) -> None:
    weights, source, size = CASES[name]
    seconds, rounds, concurrencies = asked.seconds, asked.rounds, asked.concurrency or [1, 8, 32]
    with (
        tempfile.TemporaryDirectory() as folder,
        server(model_folder(data / weights, asked.decode, Path(folder))) as address,
    ):
        picture = picture_of(data / source, size, Path(folder))
        loop = Loop(name, data / weights, picture.read_bytes())
        about = f"{size[0]}x{size[1]} JPEG of {picture.stat().st_size // 1024} KiB, decode: {asked.decode}"
        print(f"\n{name}, {about}, {rounds} rounds of {seconds:g} s")
        loop.measure(1.0)
        ask(address, name, picture, 8, 1.0)
        bare: list[float] = []
        answers: dict[int, list[dict[str, float]]] = {c: [] for c in concurrencies}
        for _ in range(rounds):
            bare.append(loop.measure(seconds))
            for concurrency in concurrencies:
                answers[concurrency].append(ask(address, name, picture, concurrency, seconds))
        report(bare, answers)


def report(bare: list[float], asked: dict[int, list[dict[str, float]]]) -> None:
    print(f"no-server loop: {statistics.median(bare):.1f}/s")
    print("| concurrency | pictures/s | p50 ms | p99 ms | ratio to the no-server loop | lowest .. highest | errors |")
    print("|---|---|---|---|---|---|---|")
    for concurrency, answers in asked.items():
        ratios = sorted(answer["per_second"] / reference for answer, reference in zip(answers, bare, strict=True))
        columns = [statistics.median(answer[key] for answer in answers) for key in ("per_second", "p50_ms", "p99_ms")]
        print(
            f"| {concurrency} | {columns[0]:.1f} | {columns[1]:.1f} | {columns[2]:.1f} | "
            f"**{statistics.median(ratios):.3f}** | {ratios[0]:.3f} .. {ratios[-1]:.3f} | "
            f"{sum(answer['errors'] for answer in answers):g} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--concurrency", action="append", type=int)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", choices=("exact", "fast"), default="exact")
    asked = parser.parse_args()
    data = os.environ.get("VISIONPOOL_TESTDATA")
    if not data:
        sys.exit("set VISIONPOOL_TESTDATA to the folder with the real models and pictures")
    for name in asked.case or CASES:
        measure(name, Path(data), asked)


if __name__ == "__main__":
    main()
