"""From an ONNX file to a plan: the network, the profiles and the settings, handed to TensorRT's builder.

    precision None, f32    the types that the file has
              f16          the file converted first: weights and arithmetic in half the bits, inputs and outputs as they were
              int8         the file's own Q/DQ nodes, which `visionpool build` puts there

TensorRT 11 has no other way to say a precision, and 10.16 takes this one too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.backends import Precision
from visionpool_server.backends.onnx_file import read_onnx
from visionpool_server.backends.tensorrt import log
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.messages import failed_build
from visionpool_server.backends.tensorrt.network import Network, parsed, refuse_types
from visionpool_server.backends.tensorrt.plugins import load_plugins
from visionpool_server.backends.tensorrt.profiles import Profile
from visionpool_server.backends.tensorrt.progress import Progress, Watch, monitor_class, silent
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.backends.tensorrt.timing import timings_kept

_USUAL = TensorRtSettings()


def build_plan(
    api: Api,
    source: Path | bytes,
    profiles: Sequence[Profile] = (),
    settings: TensorRtSettings = _USUAL,
    *,
    precision: Precision | None = None,
    progress: Progress = silent,
    plugins: Sequence[Path] = (),
    timings: Path | None = None,
) -> bytes:
    """The plan of an ONNX file, or of its bytes. With `tensorrt`, on the GPU that is current on this thread, and for it.

    `timings`: the file that keeps what the builder measures. What `progress` raises, KeyboardInterrupt too, ends the build at
    its next step and is raised here. Raises InvalidModel, BackendUnavailable.
    """
    settings.check(api)
    load_plugins(api, plugins)
    with (
        _as_file(source) as path,
        _in_precision(path, precision) as typed,
        parsed(api, typed, path.name) as whole,
        timings_kept(api, timings) as measured,
    ):
        return _built(api, whole, profiles, settings, watch=Watch(progress), timings=measured)


@contextmanager
def _as_file(source: Path | bytes) -> Iterator[Path]:
    if isinstance(source, Path):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="visionpool-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(source)
        yield path


@contextmanager
def _in_precision(path: Path, precision: Precision | None) -> Iterator[Path]:
    """The file as it is, or converted. Raises InvalidModel for a precision that it cannot be given here."""
    file = read_onnx(path)
    refuse_types((*file.inputs, *file.outputs))
    if precision == "bf16":
        raise InvalidModel(
            "the tensorrt backend does not convert to bf16",
            hint="say runtime.precision: f16; a file that is exported in bfloat16 runs so without",
        )
    if precision == "int8" and not file.quantized:
        raise InvalidModel(
            f"{path.name} is not quantised, and TensorRT takes int8 from the file",
            hint=f"visionpool build {path.name} --backend tensorrt --precision int8 --calibration PICTURES -o OUT",
        )
    if precision != "f16" or "float16" in file.element_types:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="visionpool-") as folder:
        yield _halved(path, Path(folder) / path.name)


def _halved(path: Path, out: Path) -> Path:
    try:
        from visionpool_server.backends.onnx_precision import to_half

        to_half(path, out)
    except ModuleNotFoundError as error:
        raise InvalidModel(
            f"runtime.precision: f16 converts the file, which needs the Python package {error.name!r}",
            hint="pip install 'visionpool[build]', or export the model in float16",
        ) from error
    return out


def _built(
    api: Api,
    whole: Network,
    profiles: Sequence[Profile],
    settings: TensorRtSettings,
    *,
    watch: Watch,
    timings: bytearray | None,
) -> bytes:
    builder, network = whole.builder, whole.network
    with log.errors(api) as errors:
        config = builder.create_builder_config()
        _configure(api, config, settings)
        _add_profiles(api, whole, config, profiles, errors)
        kept = _take_timings(config, timings)
        monitor = monitor_class(api.trt)(watch)  # lives until the end of the build
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        watch.check(canceled=plan is None and "BuildCanceled" in " ".join(errors.messages))
        if plan is None:
            raise failed_build(api, whole.name, errors.reasons)
        if timings is not None and kept is not None:
            timings[:] = bytes(config.get_timing_cache().serialize())
        return bytes(plan)


def _configure(api: Api, config: Any, settings: TensorRtSettings) -> None:
    flags = api.trt.BuilderFlag
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(api.trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    if settings.builder_level is not None:
        config.builder_optimization_level = settings.builder_level
    if settings.aux_streams is not None:
        config.max_aux_streams = settings.aux_streams
    if not settings.tf32:  # set by default
        config.clear_flag(flags.TF32)
    if settings.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if settings.streams_weights:
        config.set_flag(flags.WEIGHT_STREAMING)
    if settings.hardware_compatibility != "none":
        levels = api.trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = getattr(levels, settings.hardware_compatibility.upper())
    config.profiling_verbosity = getattr(api.trt.ProfilingVerbosity, settings.profiling_verbosity.upper())
    api.set_targets(config, settings.capabilities, current=settings.current)


def _add_profiles(api: Api, whole: Network, config: Any, profiles: Sequence[Profile], errors: log.Errors) -> None:
    tensors = {tensor.name: tensor for tensor in whole.inputs()}
    for tensor in tensors.values():
        if tensor.is_shape_tensor:
            raise InvalidModel(
                f"{whole.name}: the values of input {tensor.name!r} say the shapes of others, which is not served by TensorRT",
                hint="say runtime.backend: onnxruntime",
            )
    for said in profiles:
        profile: Any = whole.builder.create_optimization_profile()  # trt.IOptimizationProfile
        for key, ranged in said.items():
            if key in tensors and -1 in tuple(tensors[key].shape):
                profile.set_shape(key, ranged.min, ranged.opt, ranged.max)
        if config.add_optimization_profile(profile) < 0:
            raise failed_build(api, whole.name, errors.reasons)


def _take_timings(config: Any, timings: bytearray | None) -> Any:
    """TensorRT's timing cache, which has to live as long as the build; of another GPU or version it is begun anew."""
    if timings is None:
        return None
    kept: Any = config.create_timing_cache(bytes(timings))  # trt.ITimingCache
    if kept is None or not config.set_timing_cache(kept, False):
        kept = config.create_timing_cache(b"")
        config.set_timing_cache(kept, False)
    return kept
