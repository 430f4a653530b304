"""Pictures resized, padded and normalised by the kernel, against the recipe on the CPU: how fast, and how many numbers differ."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool_server.assembly import stack
from visionpool_server.cpu import cpu_count
from visionpool_server.cuda.gpu import DeviceBuffer, Gpu, Stream
from visionpool_server.cuda.pictures import PictureBatch
from visionpool_server.imaging.recipe import Arithmetic, CenterCrop, Letterbox, Recipe, ResizeShort

from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.models import picture
from benchmarks.on_gpu.report import Report, per_second, ratio

_FLOAT = np.dtype(np.float32)
RECIPES = {
    "letterbox 640": Recipe((Letterbox((640, 640)),), Arithmetic()),
    "short 256, crop 224": Recipe(
        (ResizeShort(256), CenterCrop((224, 224))), Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ),
}
_PICTURES = 100


def run(machine: Machine, report: Report) -> None:
    gpu = machine.gpu()
    try:
        with gpu.current():
            _speed(machine, gpu, report)
            _differences(gpu, report)
    finally:
        gpu.close()


def _speed(machine: Machine, gpu: Gpu, report: Report) -> None:
    report.text(
        f"\npictures of {machine.picture[1]}x{machine.picture[0]}, one thread for the GPU; CPU: {cpu_count()} cores"
    )
    report.table(
        "recipe", "batch", "CPU, one thread /s", "CPU, all cores /s", "GPU /s", "GPU to one thread", "GPU to all cores",
        "of it copied to pinned memory µs", "upload and kernel µs",
    )  # fmt: skip
    for name, recipe in RECIPES.items():
        for size in machine.pictures:
            report.check_time(5 * machine.seconds / 2)
            report.row(name, size, *_compared(machine, gpu, recipe, size))


def _compared(machine: Machine, gpu: Gpu, recipe: Recipe, size: int) -> list[object]:
    seconds = machine.seconds / 2
    originals = [picture(machine.picture, seed) for seed in range(size)]
    alone = per_second(lambda: on_cpu(recipe, originals), seconds) * size
    cores = cpu_count()
    with ThreadPoolExecutor(cores) as threads:

        def everywhere() -> None:
            list(threads.map(lambda _: on_cpu(recipe, originals), range(cores)))

        together = per_second(everywhere, seconds) * size * cores
    unprepared = left_to_gpu(recipe, originals)
    staging = Staging(gpu, recipe.arithmetic)
    loading = 1e6 / per_second(lambda: staging.batch.load(unprepared), seconds)
    whole = per_second(lambda: staging.run(unprepared), seconds)
    staging.close()
    return [
        *(alone, together, whole * size, ratio(whole * size, alone), ratio(whole * size, together)),
        *(loading, 1e6 / whole - loading),
    ]


def _differences(gpu: Gpu, report: Report) -> None:
    report.text(f"\n{_PICTURES} pictures of random sizes, of noise and smooth ones in turn, as float32")
    report.table("recipe", "numbers", "differing", "largest difference, of 255 steps of a picture")
    for name, recipe in RECIPES.items():
        staging = Staging(gpu, recipe.arithmetic)
        total, differing, largest = 0, 0, 0.0
        for seed in range(_PICTURES):
            one = [random_picture(seed)]
            got, wanted = staging.tensor(left_to_gpu(recipe, one)), on_cpu(recipe, one)
            step = np.float32(recipe.arithmetic.scale) / np.array(recipe.arithmetic.std, np.float32).reshape(
                1, -1, 1, 1
            )
            distance = np.abs(got - wanted) / step
            total += wanted.size
            differing += int((distance > 1e-3).sum())
            largest = max(largest, float(distance.max()))
        staging.close()
        report.row(name, total, f"{differing / total:.3%}", largest)


class Staging:
    """A batch's way to a tensor and back."""

    def __init__(self, gpu: Gpu, arithmetic: Arithmetic) -> None:
        self._gpu = gpu
        self._target: DeviceBuffer | None = None
        self.batch = PictureBatch(gpu, arithmetic, "NCHW", "float32")
        self.stream: Stream = gpu.stream()

    def run(self, pictures: NDArray[Any]) -> tuple[int, ...]:
        """Makes their tensor on the device, and waits for it; its shape."""
        shape = self.batch.load(pictures)
        size = int(np.prod(shape)) * 4
        if self._target is None or self._target.size < size:
            if self._target:
                self._target.close()
            self._target = self._gpu.buffer(size)
        self.batch.upload(self.stream)
        self.batch.run(self._target.address, self.stream)
        self.stream.synchronize()
        return shape

    def tensor(self, pictures: NDArray[Any]) -> NDArray[np.float32]:
        """The same, downloaded."""
        shape = self.run(pictures)
        size = int(np.prod(shape)) * 4
        assert self._target is not None
        host = self._gpu.pinned(size)
        self._target.download(host, size, self.stream)
        self.stream.synchronize()
        tensor = host.bytes[:size].view(np.float32).reshape(shape).copy()
        host.close()
        return tensor

    def close(self) -> None:
        self.stream.synchronize()
        self.batch.close()
        if self._target:
            self._target.close()
        self.stream.close()


def on_cpu(recipe: Recipe, originals: list[NDArray[np.uint8]]) -> NDArray[Any]:
    """The model's tensor, as the server makes it."""
    return recipe.arithmetic.apply(np.stack([recipe.prepare(one)[0] for one in originals]), "NCHW", _FLOAT)


def left_to_gpu(recipe: Recipe, originals: list[NDArray[np.uint8]]) -> NDArray[Any]:
    """(N,) objects, as the kernel's staging takes them."""
    steps = recipe.on_gpu()
    return stack([{"x": steps.prepare(one)[0]} for one in originals], len(originals))["x"]


def random_picture(seed: int) -> NDArray[np.uint8]:
    """Every other one is smooth, the others are noise."""
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(20, 900, 2))
    return picture((height, width), seed) if seed % 2 else random.integers(0, 256, (height, width, 3), np.uint8)
