"""The tests of tests/gpu are right themselves: they pass on stand-ins for the driver, TensorRT and the CUDA provider.

Without it, a machine with a GPU, lent for minutes, would be the first to run them. It shows nothing of a GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# without what they do not use, and takes longer to import than most of them to run
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"]


@pytest.mark.parametrize("part", ["drivers", "pictures", "overlap", "onnxruntime", "tensorrt"])
def test_they_pass_on_stand_ins(part: str) -> None:
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed, which compiles the kernel for the CPU")
    command = [*PYTEST, f"tests/gpu/test_{part}.py", "-x"]
    environment = {**os.environ, "VISIONPOOL_GPU_STAND_IN": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    environment.pop("VISIONPOOL_TESTDATA", None)  # real models take long on the CPU, and show no more of the tests
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 2, done.stdout[-2000:]


def test_without_a_gpu_they_are_skipped_with_what_is_missing() -> None:
    from visionpool_server.cuda.driver import open_driver
    from visionpool_server.cuda.errors import NoDriver

    try:
        open_driver().device_count()
    except NoDriver:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    command = [*PYTEST, "tests/gpu", "-ra"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VISIONPOOL_GPU")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "passed" not in done.stdout and "failed" not in done.stdout
    assert "driver" in done.stdout
