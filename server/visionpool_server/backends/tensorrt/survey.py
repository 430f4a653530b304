"""What TensorRT tells of a model: which of its nodes it has layers for, and by its profiler where the time of a run goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from visionpool.errors import BackendUnavailable, InvalidModel, SetupError, VisionpoolError

from visionpool_server.backends import LoadOptions, Source, Tensors
from visionpool_server.backends.onnx_file import node_kinds
from visionpool_server.backends.survey import Counts, Support, Timing
from visionpool_server.backends.tensorrt.api import Api, find_api
from visionpool_server.backends.tensorrt.backend import TensorRtBackend, failed
from visionpool_server.backends.tensorrt.devices import driver_of, properties_of
from visionpool_server.backends.tensorrt.engine import TensorRtEngine
from visionpool_server.backends.tensorrt.messages import unsupported_gpu
from visionpool_server.backends.tensorrt.network import taken_nodes
from visionpool_server.backends.tensorrt.plugins import load_plugins
from visionpool_server.backends.tensorrt.settings import read_settings
from visionpool_server.cuda.driver import Properties
from visionpool_server.cuda.errors import CudaError

_DETAILED = "detailed"  # `profiling_verbosity` of engines that tell what their layers are


class TensorRtSurvey:
    """Nothing is built, and no GPU needed, before `profile`."""

    def __init__(self, source: Source, options: LoadOptions) -> None:
        self._source = source
        self._options = options

    def graph(self) -> None:
        """It shows its own layers only, once they are built."""

    def devices(self) -> tuple[str, ...]:
        """Those that CUDA's driver sees; none where there is no driver."""
        try:
            return tuple(f"cuda:{ordinal}" for ordinal in range(driver_of().device_count()))
        except (BackendUnavailable, CudaError):
            return ()

    def support(self, device: str) -> Support:
        """By what the parser of an ONNX file says: all devices have the same layers, and TensorRT-RTX tells without one. A plan
        has been through that."""
        note, full_name = None, ""
        here: Counts = {}
        lacking: Counts = {}
        try:
            place = properties_of(device)
            full_name = _named(place)
        except (SetupError, CudaError) as error:
            note = getattr(error, "message", str(error))
        available = note is None
        try:
            api = find_api(read_settings(self._options.options).library)
            if available and api.targets() and place.capability not in api.targets():
                raise unsupported_gpu(api, place.capability, place.name)
            if available or api.builds_without_gpu:
                here, lacking = self._supported(api)
        except SetupError as error:
            note, available = note or error.message, False
        if available and not here and not lacking:
            note = "a plan shows its layers when it is run"
        return Support(device, available, full_name, here, lacking, note)

    def placement(self, device: str) -> Mapping[str, str]:  # noqa: ARG002  a protocol's signature
        """All of a model runs where it is loaded."""
        return {}

    def compiled_parts(self, device: str, cpu_operators: tuple[str, ...]) -> None:
        """It does not cut models."""

    def profile(self, batch: Tensors, seconds: float) -> tuple[Timing, ...]:
        """Of an engine that is built to tell what its layers are, with the timings kept of the one that serves; of a plan
        as it is, with names for kinds where it tells no more."""
        engine = TensorRtBackend().load(self._source, _to_tell(self._options))
        try:
            return engine.profile(_filled(batch, engine), seconds)
        except CudaError as error:
            raise failed(error, self._options.device) from error
        except VisionpoolError as error:
            raise InvalidModel(f"it is not profiled: {error.message}", hint=error.hint) from error
        finally:
            engine.close()

    def _supported(self, api: Api) -> tuple[Counts, Counts]:
        """How many nodes of which types TensorRT has layers for, and how many of which it lacks; none of a plan."""
        path = self._source.weights
        if path is None or path.suffix != ".onnx":
            return {}, {}
        load_plugins(api, self._options.plugins)
        kinds, taken = node_kinds(path), taken_nodes(api, path)
        if taken is None:
            return Counter(kinds), {}
        return Counter(kinds[index] for index in taken), Counter(
            kind for index, kind in enumerate(kinds) if index not in taken
        )


def _to_tell(options: LoadOptions) -> LoadOptions:
    return replace(options, contexts=1, options={"profiling_verbosity": _DETAILED, **options.options})


def _filled(batch: Tensors, engine: TensorRtEngine) -> Tensors:
    """Repeated to the smallest batch that the engine takes."""
    rows = engine.batch_sizes[0] if engine.batched and engine.batch_sizes else 1
    return {name: np.repeat(array, rows, axis=0) if rows > 1 else array for name, array in batch.items()}


def _named(place: Properties) -> str:
    major, minor = place.capability
    return f"{place.name}, compute capability {major}.{minor}, {place.memory / 2**30:.1f} GiB"
