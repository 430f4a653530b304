"""Which of ONNX Runtime's execution providers runs a model, on which device, with which of its options.

Whether the provider is there is asked of the Python package, and whether the device is of the driver, before ONNX Runtime
touches either: what is missing is said in one line, and never found out by a model that quietly runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnxruntime as ort
from visionpool.errors import BackendUnavailable, InvalidModel

from visionpool_server.backends.onnxruntime import libraries

CUDA = "CUDAExecutionProvider"
_DEFAULTS = {
    "use_tf32": "0",  # which rounds float32 to ten bits: results are those of any other runtime
    "arena_extend_strategy": "kSameAsRequested",  # powers of two take up to twice the memory
}
_REFUSED = {
    "device_id": "say runtime.device: cuda:N",
    "enable_cuda_graph": "a graph is of one batch's addresses and one worker's thread; runtime.backend: tensorrt has them",
    **dict.fromkeys(
        (
            "user_compute_stream",
            "has_user_compute_stream",
            "gpu_external_alloc",
            "gpu_external_free",
            "gpu_external_empty_cache",
        ),
        "it is an address in this process: leave it out",
    ),
}


@dataclass(frozen=True, slots=True)
class Provider:
    """`memory`: what ONNX Runtime calls the memory of its device, where inputs and outputs are bound to it: cpu or cuda."""

    name: str = "CPUExecutionProvider"
    memory: str = "cpu"
    ordinal: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_cpu(self) -> bool:
        return self.name == "CPUExecutionProvider"

    @property
    def listed(self) -> list[object]:
        """As sessions take it: what it cannot run is the CPU's."""
        if self.on_cpu:
            return [self.name]
        return [(self.name, {"device_id": str(self.ordinal), **self.options}), "CPUExecutionProvider"]

    def tuned(self, said: Mapping[str, Any], *, dynamic: bool) -> Provider:
        """With its part of runtime.options. `dynamic`: sizes differ from batch to batch, and each new one would have all of
        cuDNN's algorithms tried: then cuDNN guesses."""
        if self.on_cpu:
            return self
        search = {"cudnn_conv_algo_search": "HEURISTIC"} if dynamic else {}
        return replace(self, options={**_DEFAULTS, **search, **_split(said)[0]})

    def entries(self, said: Mapping[str, Any]) -> dict[str, str]:
        """What of runtime.options is the session's. Raises InvalidModel for what cannot be set from a file."""
        own, entries = _split(said)
        for key in own:
            if self.on_cpu:  # sessions take whatever they are told, and ignore what they do not know
                raise InvalidModel(
                    f"runtime.options: {key!r} is no option of ONNX Runtime on the CPU",
                    hint="its session's have a dot in their names, as session.intra_op.allow_spinning",
                )
            if key in _REFUSED:
                raise InvalidModel(f"runtime.options: {key} is not to be set here", hint=_REFUSED[key])
        return entries


def _split(said: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The provider's options, which it checks itself, and the session's entries, whose names have a dot."""
    texts = {key: str(int(value) if isinstance(value, bool) else value) for key, value in said.items()}
    own = {key: value for key, value in texts.items() if "." not in key}
    return own, {key: value for key, value in texts.items() if key not in own}


def provider_for(device: str) -> Provider:
    """By the name of a device: CPU, cuda, cuda:N. Raises BackendUnavailable."""
    if device == "CPU":
        return Provider()
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise BackendUnavailable(
            f"the onnxruntime backend runs on CPU or cuda:N, not on {device}",
            hint="say runtime.backend: openvino",
        )
    if CUDA not in ort.get_available_providers():
        if libraries.built_for():  # it is there, and was not loaded
            raise libraries.unusable()
        raise BackendUnavailable(
            "this onnxruntime has no CUDA provider",
            hint="pip uninstall onnxruntime; pip install 'visionpool[server,onnxruntime-cuda]'; and an NVIDIA driver",
        )
    return Provider(CUDA, "cuda", int(index or 0))
