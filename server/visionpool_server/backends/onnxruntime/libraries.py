"""The libraries of NVIDIA's that ONNX Runtime's CUDA provider needs beside the driver: found, or named where they are not.

ONNX Runtime itself only logs that it could not load the provider, and goes on with the CPU.
"""

from __future__ import annotations

import ctypes
import logging
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import onnxruntime as ort
from visionpool.errors import BackendUnavailable

log = logging.getLogger(__name__)


def preload() -> None:
    """Loads CUDA's and cuDNN's libraries from NVIDIA's Python packages where they are installed, as onnxruntime 1.21 and
    later can: the dynamic loader does not look there."""
    load = getattr(ort, "preload_dlls", None)
    if load is None:
        return
    said = StringIO()
    with redirect_stdout(said):  # it prints what it does not find, which may lie elsewhere
        load()
    if said.getvalue():
        log.debug("onnxruntime: %s", said.getvalue().strip())


def built_for() -> str | None:
    """The version of CUDA that the installed ONNX Runtime was built for; None where it was built without."""
    return getattr(ort, "cuda_version", "") or None


def unusable() -> BackendUnavailable:
    """Why the CUDA provider is there and does not load, as well as that can be told."""
    cuda = (built_for() or "12").partition(".")[0]
    lacks = missing()
    what = f"{lacks} is missing" if lacks else "its log says why"
    return BackendUnavailable(
        f"ONNX Runtime's CUDA provider does not load: {what}",
        hint=f"pip install 'onnxruntime-gpu[cuda,cudnn]', or install CUDA {cuda} and cuDNN 9 on the system",
    )


def missing() -> str | None:
    """The first library that the provider's own needs and the dynamic loader does not find."""
    for provider in sorted(Path(ort.__file__).parent.glob("capi/*onnxruntime_providers_cuda*")):
        try:
            ctypes.CDLL(str(provider))
        except OSError as error:
            if found := re.match(r"(\S+?): cannot open shared object file", str(error)):
                return found[1]
    return None
