"""Which TensorRT there is, and the only place that knows in what `tensorrt` 10.16 to 11 and `tensorrt_rtx` differ.

`tensorrt` builds an engine for the GPU at hand, by timing kernels on it, and takes plugins. `tensorrt_rtx` builds without a GPU
for the compute capabilities that it is told, and leaves the timing to the GPU that loads the engine; it takes no plugins and
has no timing cache. All else that is called here the two have alike: tests hold it against the public names of both.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from visionpool.errors import BackendUnavailable, SetupError

LIBRARIES = ("tensorrt", "tensorrt_rtx")  # the first that loads is taken
Capability = tuple[int, int]  # (8, 6)
_OLDEST, _FIRST_UNKNOWN = (10, 16), (12,)
_INSTALL = {
    "tensorrt": "pip install 'visionpool[server,tensorrt]', which fetches NVIDIA's libraries from NVIDIA",
    "tensorrt_rtx": "pip install 'visionpool[server,tensorrt-rtx]', for RTX GPUs",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Api:
    """`trt`: the Python module; `name`: its name; `version`: of its libraries, as (10, 16, 1, 11)."""

    trt: Any
    name: str
    version: tuple[int, ...]
    rtx: bool

    @property
    def title(self) -> str:
        """As people call it: TensorRT 10.16.1.11."""
        return f"{'TensorRT-RTX' if self.rtx else 'TensorRT'} {'.'.join(map(str, self.version))}"

    @property
    def plugins(self) -> bool:
        """Whether networks may have layers of others."""
        return not self.rtx

    @property
    def builds_without_gpu(self) -> bool:
        return self.rtx

    @property
    def timing_cache(self) -> bool:
        """Whether what the builder measures can be kept. TensorRT-RTX has the calls, deprecated, and measures nothing."""
        return not self.rtx

    def targets(self) -> tuple[Capability, ...]:
        """The compute capabilities that engines can be built for, ascending; none where it is the GPU's at hand."""
        if not self.rtx:
            return ()
        members = (name.removeprefix("SM") for name in self.trt.ComputeCapability.__members__ if name.startswith("SM"))
        return tuple(sorted((int(digits[:-1]), int(digits[-1])) for digits in members))

    def set_targets(self, config: Any, capabilities: tuple[Capability, ...], *, current: bool = False) -> None:
        """Builds for these, of `targets()`; `current`: for the GPU at hand, whichever it is. Neither: for all but the oldest."""
        names = ["CURRENT"] if current else [f"SM{major}{minor}" for major, minor in capabilities]
        if not self.rtx or not names:
            return
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(self.trt.ComputeCapability, name), index)

    @property
    def captures_itself(self) -> bool:
        """Whether contexts make CUDA graphs of their own, where they are told to."""
        return self.rtx

    def context(self, engine: Any, *, graphs: bool, lent: bool) -> Any:  # trt.ICudaEngine
        """A trt.IExecutionContext; None where there is no memory for it. `graphs`: with what `captures_itself` tells of;
        `lent`: the memory that it computes in is set later, by who asks."""
        strategies = self.trt.ExecutionContextAllocationStrategy
        strategy = strategies.USER_MANAGED if lent else strategies.STATIC
        if not (graphs and self.captures_itself):
            return engine.create_execution_context(strategy)
        runtime_config = engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(strategy)
        runtime_config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(runtime_config)

    def unfit(self, runtime: Any, plan: bytes) -> str | None:  # trt.Runtime
        """Why this GPU cannot run `plan`, where the library tells before it loads it: TensorRT-RTX does."""
        if not self.rtx:
            return None
        validity, diagnostics = runtime.get_engine_validity(plan)
        if validity != self.trt.EngineValidity.INVALID:
            return None
        flags = self.trt.EngineInvalidityDiagnostics.__members__.items()
        found = [name for name, flag in flags if int(diagnostics) & int(flag)]
        return (
            ", ".join(name.lower().replace("_cc", "_compute_capability").replace("_", " ") for name in found)
            or "invalid"
        )


def find_api(prefer: str | None = None) -> Api:
    """The library called `prefer`, or the first of LIBRARIES that loads and is of a version known here.

    Raises BackendUnavailable, which says what to install.
    """
    if prefer is not None and prefer not in LIBRARIES:
        raise BackendUnavailable(f"no TensorRT is called {prefer!r}", hint=f"there are {', '.join(LIBRARIES)}")
    refusals: list[SetupError] = []
    for name in [prefer] if prefer else LIBRARIES:
        try:
            api = _load(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                refusals.append(_broken(name, error))
        except BackendUnavailable as error:
            refusals.append(error)
        else:
            for refusal in refusals:
                log.warning("%s is used, since %s", api.title, refusal.message)
            return api
    raise refusals[0] if refusals else _missing(prefer)


def _load(name: str) -> Api:
    try:
        module = import_module(name)
        said = str(module.__version__)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # bindings let through whatever the loading of their libraries raises
        raise _broken(name, error) from error
    version = tuple(int(part) for part in said.split(".") if part.isdecimal())
    api = Api(module, name, version, rtx=name == "tensorrt_rtx")
    if not api.rtx and not _OLDEST <= version < _FIRST_UNKNOWN:
        raise BackendUnavailable(
            f"this is the wrong major version: {api.title}; 10.16 to 11 are supported",
            hint="pip install 'tensorrt>=10.16,<12'",
        )
    return api


def _missing(prefer: str | None) -> BackendUnavailable:
    names = [prefer] if prefer else list(LIBRARIES)
    return BackendUnavailable(
        f"the tensorrt backend needs the Python package {' or '.join(names)}",
        hint="; or ".join(_INSTALL[name] for name in names),
    )


def _broken(name: str, error: Exception) -> BackendUnavailable:
    """The bindings are there, and what they bind is not."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    library = "libtensorrt_rtx" if name == "tensorrt_rtx" else "libnvinfer"
    return BackendUnavailable(
        f"the Python package {name} is installed, but its libraries ({library}) cannot be loaded: {reason}",
        hint=f"pip install --force-reinstall {name}; or, with libraries of your own, LD_LIBRARY_PATH has to name their folder",
    )
