"""What ONNX Runtime tells of a model: which provider takes which operator, and by its profiler where the time of a run goes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime as ort
from visionpool.errors import BackendUnavailable

from visionpool_server.backends import LoadOptions, Source, Tensors
from visionpool_server.backends.onnxruntime.context import OnnxRuntimeContext
from visionpool_server.backends.onnxruntime.device import cuda_devices, open_gpu
from visionpool_server.backends.onnxruntime.engine import opened
from visionpool_server.backends.onnxruntime.provider import CUDA, Provider, provider_for
from visionpool_server.backends.onnxruntime.session import open_session
from visionpool_server.backends.survey import Counts, Support, Timing
from visionpool_server.cpu import cpu_count

_MOST_RUNS = 500  # its profiler keeps a million events, and writes all of them


class OnnxRuntimeSurvey:
    def __init__(self, source: Source, options: LoadOptions) -> None:
        self._source = source
        self._options = options

    def graph(self) -> None:
        """It shows no edges and no shapes."""

    def devices(self) -> tuple[str, ...]:
        return ("CPU", *cuda_devices()) if CUDA in ort.get_available_providers() else ("CPU",)

    def support(self, device: str) -> Support:
        """By what its own partitioning gives to the device's provider."""
        try:
            provider = provider_for(device)
            if not provider.on_cpu:
                open_gpu(provider.ordinal).close()  # raises NoDriver
            by_provider = self._assigned(provider)
        except BackendUnavailable as error:
            return Support(device, available=False, note=error.message)
        if by_provider is None:
            return Support(device, available=True, note="this onnxruntime does not say; 1.24 and later do")
        own = CUDA if device != "CPU" else "CPUExecutionProvider"
        others: Counter[str] = Counter()
        for name, counts in by_provider.items():
            if name != own:
                others.update(counts)
        return Support(device, True, own, by_provider.get(own, {}), dict(others))

    def placement(self, device: str) -> Mapping[str, str]:  # noqa: ARG002  a protocol's signature
        return {}

    def compiled_parts(self, device: str, cpu_operators: tuple[str, ...]) -> None:
        """It does not say."""

    def _assigned(self, provider: Provider) -> Mapping[str, Counts] | None:
        """Provider -> operators, of the graph as in the file. None where it does not tell."""
        settings = _quiet()
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = open_session(self._source.weights, settings, provider)
        if not hasattr(session, "get_provider_graph_assignment_info"):
            return None
        found: dict[str, Counter[str]] = {}
        for part in session.get_provider_graph_assignment_info():
            found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
        return {provider: dict(counts) for provider, counts in found.items()}

    def profile(self, batch: Tensors, seconds: float) -> tuple[Timing, ...]:
        with TemporaryDirectory(prefix="visionpool-") as folder:
            settings = _quiet()
            settings.intra_op_num_threads = max(1, cpu_count() // (self._options.contexts or cpu_count()))
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = opened(self._source, self._options, settings, provider_for(self._options.device))
            context, runs = OnnxRuntimeContext(session, self._options), 0
            context.infer(batch)
            end = time.monotonic() + seconds
            while runs < _MOST_RUNS and (not runs or time.monotonic() < end):
                context.infer(batch)
                runs += 1
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return _timings(events, runs)


def _quiet() -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    return settings


def _timings(events: list[dict[str, Any]], runs: int) -> tuple[Timing, ...]:
    """Of the profile's events those that time a kernel, in microseconds, without the first run."""
    warm = min(event["ts"] + event["dur"] for event in events if event.get("name") == "model_run")
    ms: Counter[tuple[str, str]] = Counter()
    count: Counter[tuple[str, str]] = Counter()
    for event in events:
        kernel = event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")
        if kernel and event["ts"] >= warm:
            arguments = event.get("args", {})
            key = (arguments.get("op_name", "?"), arguments.get("provider", "?").removesuffix("ExecutionProvider"))
            ms[key] += event["dur"]
            count[key] += 1
    found = [Timing(kind, device, count[kind, device] / runs, us / 1e3 / runs) for (kind, device), us in ms.items()]
    return tuple(sorted(found, key=lambda timing: -timing.ms))
