"""The groups of workers of one model: for each its device and the runtime there, as somebody says them or as they follow.

Who says more precisely wins: an entry of `workers`, then `runtime` in model.yaml, then the flags of the command line. Where
nobody names a backend, the file decides (a TensorRT engine), or else the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.backends import Precision, device_name
from visionpool_server.backends.choice import FIRST_GPU, backend_for, cuda_ordinal
from visionpool_server.models.bundle import Bundle, Workers
from visionpool_server.models.files import is_engine

NEAR = "near"  # cores that are, to a GPU
_OF_ONNX = ("tensorrt", "onnxruntime")  # backends that read ONNX
AS_ONNX = (".onnx", ".json")  # Paddle 3's programs are converted to it
_WITHOUT_FILES = ("remote", "fake")  # files of weights beside model.yaml are not looked at


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the flags of `visionpool serve` say for models whose model.yaml does not.

    `on_paper`: for `inspect`, whose flags win over model.yaml, and which asks nothing of this machine.
    """

    device: str | None = None
    workers: int | None = None
    precision: Precision | None = None
    backend: str | None = None
    cache_dir: Path | None = None
    on_paper: bool = False


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Workers that share an engine. `count` None: what the device runs best; `options`: the runtime's own."""

    backend: str
    device: str
    count: int | None = None
    precision: Precision | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cores: str | None = None  # as model.yaml writes them

    @property
    def on_gpu(self) -> bool:
        """Whether it is one of NVIDIA's."""
        return cuda_ordinal(self.device) is not None


def groups_of(bundle: Bundle, defaults: Defaults, weights: Path | None) -> tuple[WorkerGroup, ...]:
    """One or more. Raises InvalidModel for what does not go together, BackendUnavailable where nothing runs a device."""
    groups = tuple(_group(entry, bundle, defaults, weights) for entry in _entries(bundle, defaults))
    for group in groups:
        _check(group, weights)
    if not defaults.on_paper:
        _check_runtime(bundle, groups)
    return groups


def _entries(bundle: Bundle, defaults: Defaults) -> Sequence[Workers]:
    if defaults.on_paper and (defaults.device or defaults.backend):
        return [Workers(device=defaults.device, backend=defaults.backend)]
    if isinstance(bundle.workers, tuple):
        return bundle.workers
    return [Workers(count=bundle.workers or defaults.workers)]


def _group(entry: Workers, bundle: Bundle, defaults: Defaults, weights: Path | None) -> WorkerGroup:
    runtime = bundle.runtime
    device = device_of(entry.device or runtime.device or defaults.device)
    backend = entry.backend or runtime.backend or defaults.backend
    if backend is None:
        backend = "tensorrt" if weights and is_engine(weights) else backend_for(device or "CPU")
    return WorkerGroup(
        backend=backend,
        device=device or (FIRST_GPU if backend == "tensorrt" else "CPU"),
        count=entry.count,
        precision=entry.precision or runtime.precision or defaults.precision,
        options={**runtime.options, **entry.options},
        cores=entry.cores,
    )


def device_of(said: str | None) -> str | None:
    """As backends spell it; `cuda` alone is the first."""
    name = None if said is None else device_name(said)
    return FIRST_GPU if name == "cuda" else name


def _check(group: WorkerGroup, weights: Path | None) -> None:
    """What one group's device, its backend and the file ask of each other."""
    name = weights.name if weights else ""
    engine = weights is not None and is_engine(weights)
    if engine and group.backend not in ("tensorrt", *_WITHOUT_FILES):
        raise InvalidModel(
            f"{name} is a TensorRT engine, which the {group.backend} backend does not read",
            hint="leave the backend out, or serve the .onnx file that it was built from",
        )
    if group.backend == "tensorrt" and not group.on_gpu:
        raise InvalidModel(
            f"{name if engine else 'the tensorrt backend'} runs on NVIDIA GPUs, not on {group.device}",
            hint=f"say {FIRST_GPU} as its device"
            + ("" if engine else ", or leave the backend out: the device decides"),
        )
    if group.cores == NEAR and not group.on_gpu:
        raise InvalidModel(
            f"cores: {NEAR} is for workers on NVIDIA GPUs, and these are on {group.device}",
            hint='name the cores, as in cores: "0-7,16-23", or leave it out',
        )
    if weights and not engine and group.on_gpu and group.backend in _OF_ONNX and weights.suffix not in AS_ONNX:
        raise InvalidModel(
            f"{group.device} runs ONNX files, and this is {name}",
            hint="export the model to ONNX (from Paddle: paddle2onnx, from TensorFlow: python -m tf2onnx.convert), or say "
            "another device",
        )


def _check_runtime(bundle: Bundle, groups: Sequence[WorkerGroup]) -> None:
    """What `runtime` says for one runtime alone must be meant for one that is there."""
    runtime = bundle.runtime
    backends = list(dict.fromkeys(group.backend for group in groups))
    if runtime.options and len(backends) > 1:
        raise InvalidModel(
            f"runtime.options are one runtime's own, and this model has {' and '.join(backends)}",
            hint="say them as options: of the entries of workers in model.yaml",
        )
    if "remote" in backends and len(backends) > 1:
        raise InvalidModel(
            f"a model runs on another server or here, not both: its workers have {' and '.join(backends)}",
            hint="leave backend out of the entries of workers in model.yaml",
        )
    for key in ("profiles", "plugins"):
        if getattr(runtime, key) and "tensorrt" not in backends:
            raise InvalidModel(
                f"runtime.{key} is TensorRT's, and this model runs by {' and '.join(backends)}",
                hint=f"leave it out of model.yaml, or say device: {FIRST_GPU}",
            )
