"""CUDA kernels on the CPU: their own source, compiled by g++ behind the shims of tests/cuda_shims."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from visionpool_server.cuda.driver import Grid
from visionpool_server.cuda.pictures import KERNEL
from visionpool_server.cuda.sources import PICTURE

from tests.fake_cuda_memory import Span

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "server/visionpool_server/cuda/kernels/pictures.cu"
_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-Wall")
_ITEM = (1, 2, 4)  # bytes, by `enum Type` of the kernel


class CpuKernel:
    """A kernel that is called as the driver launches it, with addresses of this process. It is FakeDriver's `run`."""

    def __init__(self, library: Path) -> None:
        self._launch = ctypes.CDLL(str(library)).launch_kernel

    def __call__(self, grid: Grid, block: Grid, arguments: Sequence[np.generic]) -> None:
        held = [np.array(argument) for argument in arguments]
        addresses = (ctypes.c_void_p * len(held))(*(argument.ctypes.data for argument in held))
        self._launch((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), addresses)


def compiled_kernel(folder: Path, *, source: Path = SOURCE, name: str = KERNEL) -> CpuKernel:
    """Compiled into `folder`. Skips the test where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    library = folder / f"{name}.so"
    defined = (f'-DSOURCE="{source}"', f"-DKERNEL={name}")
    shim = ROOT / "tests/cuda_shims/kernel.cpp"
    subprocess.run([compiler, *_FLAGS, *defined, str(shim), "-o", str(library)], check=True, timeout=120)
    return CpuKernel(library)


def picture_spans(grid: Grid, block: Grid, arguments: Sequence[np.generic]) -> tuple[list[Span], list[Span]]:
    """What a launch of the pictures' kernel reads, as far as its arguments tell (the table), and writes: FakeDriver's
    `touches`."""
    staged, target, height, width, channels, _, _, _, target_type = (int(argument) for argument in arguments[:9])
    size = grid[2] * height * width * channels * _ITEM[target_type]
    return [Span(staged, grid[2] * PICTURE.itemsize)], [Span(target, size)]
