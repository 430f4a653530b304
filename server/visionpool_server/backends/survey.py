"""The seam to what a runtime can tell of a model without serving it: its graph, what each device supports, where time goes.

A backend that can tell has a line in SURVEYS. A leaf beside the backends: it imports none of them before one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, cast

from visionpool.errors import BackendUnavailable

from visionpool_server.backends import LoadOptions, Source, Tensors

SURVEYS = {
    "openvino": "visionpool_server.backends.openvino.survey:OpenVinoSurvey",
    "onnxruntime": "visionpool_server.backends.onnxruntime.survey:OnnxRuntimeSurvey",
    "tensorrt": "visionpool_server.backends.tensorrt.survey:TensorRtSurvey",
}
Counts = Mapping[str, int]  # operator type -> how many of them


@dataclass(frozen=True, slots=True)
class Edge:
    """A tensor that an operator takes from another one. `bytes` None: its size is open."""

    source: int  # the producer's place among the graph's operators
    port: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Operator:
    """A node of the graph. `inputs`: only from operators that compute on what requests bring.

    `flops` None: they follow from values, or nobody knows how to count them.
    `by_value`: its inputs' shapes do not say its outputs' shapes.
    """

    name: str
    kind: str
    inputs: tuple[Edge, ...]
    flops: int | None
    by_value: bool


@dataclass(frozen=True, slots=True)
class Weights:
    """The constants of one element type."""

    dtype: str
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A model's operators, each after those it takes from, with its inputs fixed to `shapes`.

    `activation_bytes`: the most that is alive at once where each operator's outputs are kept until they are last used.
    `fixed` False: the graph did not take the shapes, and was counted as far as its file goes.
    """

    shapes: Mapping[str, tuple[int, ...]]
    operators: tuple[Operator, ...]
    weights: tuple[Weights, ...]
    activation_bytes: int
    fixed: bool = True


@dataclass(frozen=True, slots=True)
class Support:
    """What one device makes of the model's operators. `note`: why nothing is known, where nothing is."""

    device: str
    available: bool
    full_name: str = ""
    supported: Counts = field(default_factory=dict)
    unsupported: Counts = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """What the operators of one type took on one device, in each inference on average."""

    kind: str  # as the device executes them: fused operators stand under the name of one
    device: str
    count: float
    ms: float
    precision: str | None = None  # of what they compute, where the runtime tells: f32, f16, int8 ...


class Survey(Protocol):
    """One model, as it would be loaded with some options."""

    def graph(self) -> Graph | None:
        """None where the runtime does not show it."""

    def devices(self) -> tuple[str, ...]:
        """The devices of this machine."""

    def support(self, device: str) -> Support:
        """For a single device, of this machine or not."""

    def placement(self, device: str) -> Mapping[str, str]:
        """Operator's name -> device, for any device string; empty where the runtime does not say. Raises InvalidModel."""

    def compiled_parts(self, device: str, cpu_operators: tuple[str, ...]) -> int | None:
        """Into how many parts the runtime really cuts the model when it compiles it; None where it does not say.

        Raises InvalidModel where it does not compile.
        """

    def profile(self, batch: Tensors, seconds: float) -> tuple[Timing, ...]:
        """Runs for so long, and says where the time went. Raises SetupError."""


def open_survey(backend: str, source: Source, options: LoadOptions) -> Survey | None:
    """None for a backend that cannot tell. Raises BackendUnavailable where it is not installed, InvalidModel."""
    if backend not in SURVEYS:
        return None
    module, _, attribute = SURVEYS[backend].partition(":")
    try:
        build = cast(Callable[[Source, LoadOptions], Survey], getattr(import_module(module), attribute))
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"the {backend} backend needs the Python package {error.name!r}") from error
    return build(source, options)
