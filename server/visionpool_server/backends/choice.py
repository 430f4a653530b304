"""Which backend runs a device where nobody names one: what is installed decides. A leaf beside the backends, like `survey`."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec

from visionpool.errors import BackendUnavailable, InvalidModel

TENSORRT = ("tensorrt", "tensorrt_rtx")  # Python packages of which either will do
FIRST_GPU = "cuda:0"
_CUDA = re.compile(r"cuda:(\d{1,4})")


def cuda_ordinal(device: str) -> int | None:
    """The number of an NVIDIA GPU among those that this process sees; None for any other device.

    Raises InvalidModel for what looks like one, and is none.
    """
    if not device.startswith("cuda"):
        return None
    if found := _CUDA.fullmatch(device):
        return int(found[1])
    several = "; for several, workers: [{device: cuda:0}, {device: cuda:1}]" if "," in device else ""
    raise InvalidModel(f"{device!r} is no device", hint=f"an NVIDIA GPU is cuda:0, cuda:1 ...{several}")


def backend_for(device: str) -> str:
    """Raises BackendUnavailable, which says what to install, InvalidModel."""
    if cuda_ordinal(device) is None:
        return "onnxruntime" if find_spec("onnxruntime") and not find_spec("openvino") else "openvino"
    if any(map(find_spec, TENSORRT)):
        return "tensorrt"
    if _onnxruntime_has_cuda():
        return "onnxruntime"
    raise BackendUnavailable(
        f"{device} needs TensorRT, or ONNX Runtime with its CUDA provider, and neither is installed",
        hint="pip install 'visionpool[server,tensorrt]'; or, in place of onnxruntime, 'visionpool[server,onnxruntime-cuda]'",
    )


def _onnxruntime_has_cuda() -> bool:
    if not find_spec("onnxruntime"):
        return False
    return "CUDAExecutionProvider" in import_module("onnxruntime").get_available_providers()
