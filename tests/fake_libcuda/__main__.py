"""Runs one scenario in this process, which has to find the fake library: see tests/test_cuda_drivers.py.

    LD_LIBRARY_PATH=FOLDER python -m tests.fake_libcuda <cuda-bindings or pycuda> <scenario> FOLDER/kernels.so

After it nothing may be left open, and nothing may have been misused.
"""

from __future__ import annotations

import sys

from visionpool_server.cuda.driver import open_driver

from tests.fake_libcuda import Fake, faults, scenarios
from tests.fake_libcuda.common import On

PROVOKING = ("memory", "copies")  # they do on purpose what the fake counts as misuse
LEAKING = ("left_open_at_exit", "kept_for_libraries")


def main(layer: str, name: str, kernels: str) -> None:
    on = On(open_driver(layer), Fake(), f"host:{kernels}".encode())
    scenario = getattr(scenarios, name, None) or getattr(faults, name)
    scenario(on)
    left = on.fake.left()
    if name in PROVOKING:
        left.pop("misuses", None)
    assert name in LEAKING or not left, left


main(*sys.argv[1:])
