"""What is said where TensorRT cannot do what it is asked to, each with what to do about it; said while loading and running."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from visionpool.errors import BackendUnavailable, InvalidModel, InvalidRequest

from visionpool_server.backends import ShapeRange
from visionpool_server.backends.tensorrt.api import Api, Capability
from visionpool_server.backends.tensorrt.plan_header import header_of

REBUILD = "build it anew for this machine, from the ONNX file: visionpool build MODEL.onnx --backend tensorrt -o OUT"
FASTER = "faster: runtime.precision: f16, or runtime.options.tf32: true, which rounds factors to 10 bits"
_OF_GPU = ("cudaError", "CUDA_ERROR", "CUDA initialization", "CUDA driver")  # in TensorRT's own words


class UnusablePlan(BackendUnavailable):
    """A plan that this TensorRT on this GPU does not take: another one can be built where there is an ONNX file."""


def not_a_gpu(device: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"the tensorrt backend runs on NVIDIA GPUs, not on {device}",
        hint="say runtime.device: cuda:0, or runtime.backend: openvino",
    )


def unusable(api: Api, plan: bytes, capability: Capability, gpu: str, reason: str) -> UnusablePlan:
    """What `deserialize_cuda_engine` answered None to. `reason`: of its log."""
    header = header_of(plan)
    if header is None:
        return UnusablePlan("this is no TensorRT engine", hint=REBUILD)
    if header.rtx != api.rtx:
        return UnusablePlan(
            f"the engine was built by {header.title}, and the library here is {api.title}",
            hint=f"{REBUILD}; or install the library that built it, and say runtime.options.library",
        )
    if header.version != api.version[:4] and _is_about_versions(reason):
        return UnusablePlan(f"the engine was built by {header.title}, and this is {api.title}", hint=REBUILD)
    place = f"{gpu} (compute capability {capability[0]}.{capability[1]})"
    if "driver" in reason.lower():
        return UnusablePlan(
            f"the NVIDIA driver is too old for {api.title}: {reason}",
            hint="update the driver, or install a TensorRT for the CUDA version that nvidia-smi shows",
        )
    if _is_about_memory(reason):
        return UnusablePlan(
            f"the engine does not fit into the memory of {gpu}: {reason}",
            hint="load fewer, or say a smaller max_batch_size",
        )
    return UnusablePlan(
        f"the engine was built for another GPU than {place}, or is damaged: {reason}",
        hint=f"{REBUILD}; runtime.options.hardware_compatibility: ampere_plus builds for several kinds of GPU",
    )


def unsupported_gpu(api: Api, capability: Capability, gpu: str) -> BackendUnavailable:
    targets = ", ".join(f"{major}.{minor}" for major, minor in api.targets())
    return BackendUnavailable(
        f"{api.title} has no code for {gpu}: its compute capability is {capability[0]}.{capability[1]}, and not {targets}",
        hint="pip install 'visionpool[server,tensorrt]', which runs on data centre GPUs too; or runtime.backend: onnxruntime",
    )


def no_profile(name: str, shape: Sequence[int], ranges: Iterable[ShapeRange]) -> InvalidRequest:
    """Of an input that came in a shape that the engine was not built for. `ranges`: of all its profiles."""
    there = " or ".join(f"{_text(one.min)} to {_text(one.max)}" for one in ranges)
    return InvalidRequest(
        f"the engine has no profile for input {name!r} of shape {_text(shape)}: it takes {there}",
        hint=f"for this shape too, {profile_example({name: shape})} in model.yaml",
    )


def profile_example(shapes: Mapping[str, Sequence[int | None]]) -> str:
    """A line of model.yaml that says the shapes of these inputs; dimensions of None are made up."""
    entries = []
    for name, shape in shapes.items():
        low, usual, high = ([_guess(size, axis, step) for axis, size in enumerate(shape)] for step in range(3))
        entries.append(f"{name}: {{min: {_text(low)}, opt: {_text(usual)}, max: {_text(high)}}}")
    return f"say runtime.profiles: [{{{', '.join(entries)}}}]"


def failed_build(api: Api, name: str, reasons: Sequence[str]) -> InvalidModel | BackendUnavailable:
    """What the builder answered None to. `reasons`: of its log, of which the last one ended it."""
    of_gpu = [any(word in reason for word in _OF_GPU) for reason in reasons]
    if any(of_gpu[-1:]):
        return BackendUnavailable(
            f"{api.title} cannot use the GPU to build {name}: {reasons[-1]}",
            hint="it needs a driver as new as its CUDA: nvidia-smi shows which that is",
        )
    reason = "; ".join(each for each, gpu in zip(reasons, of_gpu, strict=True) if not gpu) or "it does not say why"
    if "libnvinfer_lean" in reason:
        return BackendUnavailable(
            f"{api.title} cannot build {name} to be version compatible: {reason}",
            hint="leave version_compatible out of runtime.options, or pip install tensorrt_lean",
        )
    return InvalidModel(
        f"{api.title} cannot build an engine of {name}: {reason[:1000]}",
        hint="check runtime.shapes and runtime.profiles, or say runtime.backend: onnxruntime",
    )


def _guess(size: int | None, axis: int, step: int) -> int:
    return size if size is not None else ((1, 4, 8) if axis == 0 else (320, 640, 1280))[step]


def _text(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _is_about_versions(reason: str) -> bool:
    return any(word in reason.lower() for word in ("version", "incompatib", "not compatible", "serialization"))


def _is_about_memory(reason: str) -> bool:
    return any(
        word in reason.lower()
        for word in ("out of memory", "outofmemory", "memory allocation", "insufficient gpu memory")
    )
