"""The seam to the runtimes: a backend reads model files and loads engines; an engine clones contexts for the workers.

A new backend is one file here and one line in BACKENDS. Backends never import each other, or a family.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import BackendUnavailable, InvalidModel

from visionpool_server.imaging.recipe import Arithmetic

# ONNX Runtime writes a device's id under HOME otherwise, when imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Tensors = Mapping[str, NDArray[Any]]
Precision = Literal["f32", "bf16", "f16", "int8"]  # int8: of a model that was quantised before
Layout = Literal["NCHW", "NHWC", "CHW"]  # CHW: a model of one picture, without a batch dimension

BACKENDS = {
    "openvino": "visionpool_server.backends.openvino:OpenVinoBackend",
    "onnxruntime": "visionpool_server.backends.onnxruntime:OnnxRuntimeBackend",
    "tensorrt": "visionpool_server.backends.tensorrt:TensorRtBackend",
    "remote": "visionpool_server.backends.remote:RemoteBackend",
    "fake": "visionpool_server.backends.fake:FakeBackend",
}
_EXTRAS = {
    "openvino": "server,openvino",
    "onnxruntime": "server,onnxruntime",
    "tensorrt": "server,tensorrt",
    "remote": "server",
}
Ending = Literal["softmax", "sigmoid", "argmax", "logits"]  # logits: a linear layer, whose numbers are no scores yet
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "bfloat16", "bytes"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: a file or folder of weights, or (backend: remote) a server, the model's name there, and
    how to speak with it."""

    weights: Path | None = None
    url: str | None = None
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # runtime.options, which may hold secrets


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as the model's file declares it. A dimension of None is dynamic, a shape of None has any rank.

    `dtype`: one of DTYPES, which are NumPy's names, "bfloat16" (ml_dtypes' type) and "bytes" (strings, as an object array of
    Python bytes); or the runtime's own name for a type that arrays do not have.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str

    @property
    def rank(self) -> int:
        """How many dimensions it has; 0 for a scalar, and where the file leaves that open."""
        return len(self.shape or ())


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model file says of itself."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    endings: Mapping[str, Ending] = field(default_factory=dict)  # by output, of those whose last operator tells it


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input that takes the picture: the engine takes (N, H, W, 3) RGB there, uint8 or, where its values are no whole
    numbers, float32, and does the arithmetic itself.

    `unprepared`: it takes (N,) objects there, each an `imaging.unprepared.Unprepared`, and resizes them itself too. Only
    engines on NVIDIA GPUs do, and `size` is known then.
    """

    name: str
    layout: Layout
    arithmetic: Arithmetic
    size: tuple[int, int] | None = None  # (height, width); None leaves it dynamic
    dtype: Literal["uint8", "float32"] = "uint8"
    unprepared: bool = False


class ShapeRange(NamedTuple):
    """The shapes of one input that an engine is built for; it is quickest at `opt`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model. `contexts` None: as many as the device runs best; `batch_sizes` empty: the device's habit.

    `image` None: the engine takes the model's own tensors, as in its file. It then joins nothing unless `max_batch_size` or
    `batch_sizes` say so.
    """

    image: ImageInput | None = None
    device: str = "CPU"
    precision: Precision | None = None
    contexts: int | None = None
    max_batch_size: int | None = None
    batch_sizes: tuple[int, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    profiles: tuple[Mapping[str, ShapeRange], ...] = ()  # TensorRT's: by input, for each the engine is tuned
    plugins: tuple[Path, ...] = ()  # TensorRT's: libraries, and Python files, of further layers
    max_shapes: int = 8  # of dynamic inputs: so many stay compiled
    cpu_operators: tuple[str, ...] = ()
    cache_dir: Path | None = None
    hang_timeout: float | None = None  # seconds after which a worker that waits for a batch is replaced
    options: Mapping[str, Any] = field(default_factory=dict)  # the runtime's own properties, passed through


def device_name(said: str) -> str:
    """A device as backends spell it, in whatever case and with whatever spaces somebody wrote it: HETERO:GPU,CPU, cuda:0."""
    name = "".join(said.split()).upper()
    return name.lower() if name.startswith("CUDA") else name


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an engine really runs. `devices`: execution device -> operator types, where the runtime tells. `memory_bytes`:
    what it holds there at least: the weights; on TensorRT the engine and the memory of its contexts."""

    backend: str
    device: str
    precision: str
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    advice: str | None = None  # what to set for it to run better
    memory_bytes: int | None = None  # None: nobody knows


@dataclass(frozen=True, slots=True)
class ShapeUse:
    """The shapes of its dynamic inputs that an engine holds compiled, of how many at most, and how many gave way so far."""

    limit: int
    compiled: int
    dropped: int


class Context(Protocol):
    """What one worker thread uses. Not thread-safe."""

    def infer(self, batch: Tensors) -> Tensors:
        """Runs one batch of C-contiguous arrays, which may be read-only.

        The outputs may be views that the next call overwrites: use them up before.
        """


class Pending(Protocol):
    """A batch that is under way."""

    def outputs(self) -> Tensors:
        """Waits for them, and raises what failed. Views, until `depth` further batches have begun. Asked for once."""


@runtime_checkable
class DeepContext(Protocol):
    """A context that takes the next batch in while one is computed: what is copied to a device and back overlaps then."""

    @property
    def depth(self) -> int:
        """How many batches may have begun whose outputs were not asked for yet; they are asked for in order."""

    def begin(self, batch: Tensors) -> Pending:
        """Returns as soon as the batch's arrays may be overwritten."""

    def infer(self, batch: Tensors) -> Tensors:
        """As `Context.infer`."""

    def close(self) -> None:
        """Frees what is its own, once nothing is under way. Called on the thread that used it."""


class Engine(Protocol):
    """ONE copy of the weights on one device."""

    @property
    def contexts(self) -> int:
        """How many contexts to clone for the best throughput."""

    @property
    def batched(self) -> bool:
        """Whether the first dimension of every input and output is the batch, to join and split along.

        False: what comes is run whole and alone, in the very shape that it has.
        """

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes it takes, ascending; a batch in between is padded. Empty: any size up to `max_batch_size`."""

    @property
    def max_batch_size(self) -> int:
        """How many rows to join at most. With the model's own tensors and no `batch_sizes`, one call may bring more."""

    @property
    def on_cpu(self) -> bool:
        """Whether its contexts compute on this machine's cores."""

    @property
    def quick_bytes(self) -> int:
        """For inputs of at most so many bytes it computes on the thread that asks, sooner than another could be woken; 0:
        it never does."""

    def clone(self) -> Context:
        """A further context on the same weights: cheap."""

    def describe(self) -> Placement: ...

    def shape_use(self) -> ShapeUse | None:
        """None where all shapes are fixed, or the runtime keeps nothing for each."""

    def close(self) -> None: ...


class Backend(Protocol):
    def read(self, source: Source) -> Signature:
        """Reads a file without loading it onto a device. Raises InvalidModel."""

    def load(self, source: Source, options: LoadOptions) -> Engine:
        """Loads, compiles and runs once. Raises InvalidModel, BackendUnavailable."""


def get_backend(name: str) -> Backend:
    """The backend of this name. Raises InvalidModel for an unknown one, BackendUnavailable for one not installed."""
    if name not in BACKENDS:
        raise InvalidModel(f"unknown backend {name!r}", hint=f"known: {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        return cast(Backend, getattr(import_module(module), attribute)())
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"the {name} backend needs the Python package {error.name!r}",
            hint=f"pip install 'visionpool[{_EXTRAS.get(name, 'server')}]'",
        ) from error


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of arrays whose spec says `name`, one of DTYPES."""
    if name == "bfloat16":
        import_module("ml_dtypes")  # it teaches NumPy the name
    return np.dtype(object if name == "bytes" else name)


def zeros(shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """An array of zeros: False among booleans, and "0" among strings, which a model that reads numbers can read."""
    return np.full(shape, b"0", object) if dtype == "bytes" else np.zeros(shape, numpy_dtype(dtype))


def ones(shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """An array of ones: what a vision model takes beside its picture is sizes and scales, and divided by."""
    return np.full(shape, b"1", object) if dtype == "bytes" else np.ones(shape, numpy_dtype(dtype))


def refuse_unknown_types(signature: Signature) -> None:
    """Raises InvalidModel for tensors of a type that no array has: they cannot be served as they are."""
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype not in DTYPES:
            raise InvalidModel(
                f"tensor {spec.name!r} is of type {spec.dtype}, which cannot be sent",
                hint=f"export it as one of {', '.join(DTYPES)}",
            )
