"""A stand-in for the Python module `tensorrt`: the names that our code uses, of engines that ONNX Runtime computes on the memory
of a FakeDriver, when its streams come to it.

    trt = FakeTensorRt(driver)                           # what `import tensorrt` would give
    api = trt.api()
    plan = make_plan(onnx_bytes, profiles=[{"images": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}])
    trt.fail("execute_async_v3", at=2)                   # the second from now on fails as TensorRT's own would

A plan is what real ones begin with, then a line of JSON, then the ONNX file. It answers as TensorRT does: None or False, and
the reason in the log. `open`: outputs whose size only the numbers tell; `host`: inputs that are read in RAM, with the numbers
that they may be.
"""

from __future__ import annotations

import ctypes
import enum
import json
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.cuda.errors import CudaError

from tests.fake_cuda import FakeDriver, Fault, Span

VERSION = (10, 16, 1, 11)
_TAG = b"ftrt" + bytes(20) + bytes(VERSION)
_TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(bool)": ("BOOL", np.bool_),
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
}
Range = tuple[Sequence[int], Sequence[int], Sequence[int]]


def make_plan(
    model: bytes,
    profiles: Sequence[Mapping[str, Range]] = (),
    *,
    open: Sequence[str] = (),  # noqa: A002  as the docstring above has it
    host: Mapping[str, Range] | None = None,
    detailed: bool = False,
    most: Mapping[str, int] | None = None,
    weights: int = 64,
    layout: str = "LINEAR",
) -> bytes:
    """`most`: the most bytes of outputs that are `open`; `weights`: how many bytes the engine holds on the device; `layout`: of
    all tensors, a member of TensorFormat."""
    said = {
        "profiles": [{name: [list(one) for one in each] for name, each in profile.items()} for profile in profiles],
        "open": list(open),
        "host": {name: [list(one) for one in each] for name, each in (host or {}).items()},
        "detailed": detailed,
        "most": dict(most or {}),
        "weights": weights,
        "layout": layout,
    }
    return _TAG + json.dumps(said).encode() + b"\n" + model


class DataType(enum.Enum):
    FLOAT, HALF, BF16, BOOL, UINT8, INT8, INT32, INT64, FP8 = range(9)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class TensorFormat(enum.Enum):
    LINEAR, CHW4 = range(2)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class LayerInformationFormat(enum.Enum):
    ONELINE, JSON = range(2)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity


class IOutputAllocator:
    pass


class IProfiler:
    pass


class FakeTensorRt:
    """`deserialised`, `contexts`: how many were made so far. `failed`: the calls that were made to fail."""

    __version__ = ".".join(map(str, VERSION))
    DataType, TensorIOMode, TensorLocation, TensorFormat = DataType, TensorIOMode, TensorLocation, TensorFormat
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    LayerInformationFormat = LayerInformationFormat
    ILogger, IOutputAllocator, IProfiler = ILogger, IOutputAllocator, IProfiler

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.deserialised = self.contexts = 0
        self.failed: list[str] = []
        self.calls: Counter[str] = Counter()
        self.fault: str | None = None  # a status: the next inference breaks the device with it
        self._failures: dict[str, int] = {}

    def api(self) -> Api:
        return Api(self, "tensorrt", VERSION, rtx=False)

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        return True

    def Runtime(self, logger: Any) -> Runtime:
        assert self.driver.calls["device_count"], "without a driver this would end the process"
        return Runtime(self, logger)

    def fail(self, call: str, at: int = 1) -> None:
        self._failures[call] = at

    def struck(self, call: str) -> bool:
        self.calls[call] += 1
        for key in (call, "*"):
            if key in self._failures:
                self._failures[key] -= 1
                if self._failures[key] == 0:
                    del self._failures[key]
                    self.failed.append(call)
                    return True
        return False


class Runtime:
    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self._trt = trt
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if self._trt.struck("deserialize_cuda_engine") or not plan.startswith(_TAG):
            self._logger.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (bad magic)")
            return None
        said, _, model = plan[len(_TAG) :].partition(b"\n")
        self._trt.deserialised += 1
        return ICudaEngine(self._trt, self, self._logger, json.loads(said), model)


class ICudaEngine:
    def __init__(self, trt: FakeTensorRt, runtime: Runtime, logger: Any, said: dict[str, Any], model: bytes) -> None:
        self._session = _session(model)
        self._trt, self._runtime, self._logger, self._said = trt, runtime, logger, said
        self._nodes = [(node.name or f"{node.op_type}_{i}", node.op_type) for i, node in enumerate(_nodes(model))]
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._io = {**self._inputs, **{node.name: node for node in self._session.get_outputs()}}
        self._shapes: dict[Any, dict[str, tuple[int, ...]]] = {}
        self._weights = Span(trt.driver.allocate(said["weights"]), said["weights"])
        ctypes.memset(self._weights.address, 0, self._weights.size)
        trt.driver.note_written(self._weights)
        _free_with(self, trt.driver, self._weights.address)
        self.streamable_weights_size = said["weights"]
        self.weight_streaming_budget_v2 = said["weights"]
        self.device_memory_size_v2 = 256

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._said["profiles"]))

    def get_weight_streaming_automatic_budget(self) -> int:
        return int(self._said["weights"]) // 2

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._io)[index])

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_TYPES[self._io[name].type][0]]

    def get_tensor_format(self, name: str) -> TensorFormat:
        return TensorFormat[self._said["layout"]]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self._said["host"] else TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._io[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._said["profiles"][profile_index][name]]

    def get_tensor_profile_values(self, profile_index: int, name: str) -> list[list[int]]:
        assert isinstance(profile_index, int)
        return list(self._said["host"].get(name, []))

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        if self._trt.struck("create_execution_context"):
            self._logger.log(
                Severity.ERROR, "IExecutionContext::create: Error Code 2: OutOfMemory (no further information)"
            )
            return None
        try:
            made = IExecutionContext(self._trt, self, strategy)
        except CudaError as error:
            self._logger.log(Severity.ERROR, f"IExecutionContext::create: Error Code 2: OutOfMemory ({error})")
            return None
        self._trt.contexts += 1
        return made

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [node.name for node in self._session.get_outputs()]
        return dict(zip(names, map(np.ascontiguousarray, self._session.run(names, dict(feeds))), strict=True))

    def array(self, name: str, address: int, shape: Sequence[int]) -> NDArray[Any]:
        """A copy of what lies there."""
        dtype = np.dtype(_TYPES[self._io[name].type][1])
        return np.frombuffer(ctypes.string_at(address, prod(shape) * dtype.itemsize), dtype).reshape(shape)

    def output_shapes(self, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, NDArray[Any]]) -> Any:
        key = (tuple(shapes.items()), tuple((name, value.tobytes()) for name, value in values.items()))
        if key not in self._shapes:
            feeds: dict[str, NDArray[Any]] = {
                name: np.zeros(shape, np.dtype(_TYPES[self._io[name].type][1])) for name, shape in shapes.items()
            }
            self._shapes[key] = {name: value.shape for name, value in self.infer({**feeds, **values}).items()}
        return self._shapes[key]


class EngineInspector:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002  TensorRT's name
        assert format is LayerInformationFormat.JSON
        detailed = self._engine._said["detailed"]
        given = [{"Name": "t", "Format/Datatype": "Row major linear FP32"}]
        layers = [
            {"Name": name, "LayerType": kind, "Outputs": given} if detailed else name
            for name, kind in self._engine._nodes
        ]
        return json.dumps({"Layers": layers, "Bindings": list(self._engine._io)})


class IExecutionContext:
    def __init__(self, trt: FakeTensorRt, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.profiler: Any = None
        self._trt, self._engine = trt, engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._outputs: dict[str, tuple[int, ...]] | None = None
        self._memory: Span | None = None
        self._own = Span(trt.driver.allocate(64), 64)  # that no inference may be using when the context goes
        _free_with(self, trt.driver, self._own.address)
        if strategy is ExecutionContextAllocationStrategy.STATIC:
            self._memory = Span(trt.driver.allocate(engine.device_memory_size_v2), engine.device_memory_size_v2)
            _free_with(self, trt.driver, self._memory.address)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2
        self._memory = Span(memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if self._refused("set_optimization_profile_async", not stream_handle, "the stream is the default one"):
            raise RuntimeError("Error in set optimization profile async.")  # the real binding never gives False
        self._profile, self._shapes, self._outputs = profile_index, {}, None
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if self._refused("set_input_shape", self._profile is None, "no profile was chosen"):
            return False
        declared, given = self._engine.get_tensor_shape(name), tuple(shape)
        low, high = declared, declared
        if -1 in declared:
            low, _, high = self._engine.get_tensor_profile_shape(name, self._profile or 0)
        fits = len(given) == len(low) and all(a <= size <= b for a, size, b in zip(low, given, high, strict=True))
        if self._refused("", not fits, f"setInputShape: {name} {given} is out of the profile's range"):
            return False
        self._shapes[name], self._outputs = given, None
        return True

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._engine._inputs if name not in self._shapes]
        missing += [name for name in self._engine._said["host"] if name not in self._addresses]
        if missing:
            return missing
        if self._refused("infer_shapes", False, ""):
            raise RuntimeError("infer_shapes")
        try:
            known = self._engine.output_shapes(self._shapes, self._host_values())
        except Exception as error:
            self._refused("", True, f"IExecutionContext::inferShapes: Error Code 7: {str(error)[:80]}")
            raise RuntimeError("infer_shapes") from error
        self._outputs = dict(known)
        for name in self._engine._said["open"]:
            self._outputs[name] = (-1,) * len(known[name])
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._engine._inputs:
            return self._shapes[name]
        assert self._outputs is not None, "shapes were not inferred"
        return self._outputs[name]

    def get_max_output_size(self, name: str) -> int:
        return int(self._engine._said["most"].get(name, -1))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self._refused("set_tensor_address", not memory, f"no memory for {name}"):
            return False
        self._addresses[name] = memory
        return True

    def set_output_allocator(self, name: str, output_allocator: IOutputAllocator) -> bool:
        assert isinstance(output_allocator, IOutputAllocator)
        if self._refused("set_output_allocator", False, ""):
            return False
        self._allocators[name] = output_allocator
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        lacking = [name for name in self._engine._io if name not in self._addresses and name not in self._allocators]
        wrong = not stream_handle or self._outputs is None or self._memory is None or lacking
        if self._refused("execute_async_v3", bool(wrong), f"not ready: {lacking or 'shapes or memory'}"):
            return False
        assert self._outputs is not None
        assert self._memory is not None
        sizes = {name: self._size(name, shape) for name, shape in {**self._shapes, **self._outputs}.items()}
        on_device = [name for name in self._engine._inputs if name not in self._engine._said["host"]]
        reads = [Span(self._addresses[name], sizes[name]) for name in on_device if sizes[name]]
        fixed = [name for name in self._outputs if name not in self._engine._said["open"]]
        writes = [Span(self._addresses[name], sizes[name]) for name in fixed if sizes[name]]
        work = self._inference([*fixed], dict(self._addresses), dict(self._shapes), self._host_values())
        came: dict[str, NDArray[Any]] = {}
        try:
            self._trt.driver.enqueue(
                stream_handle,
                lambda: came.update(work()),
                reads=[*reads, self._engine._weights],
                writes=[*writes, self._memory, self._own],
                name="inference",
            )
            return self._report(stream_handle) and self._give_open(stream_handle, came)
        except RuntimeError as error:  # of the driver, which TensorRT calls itself
            self._refused("", True, f"Cuda Runtime ({error})")
            return False

    def _inference(
        self,
        fixed: Sequence[str],
        addresses: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        host: Mapping[str, NDArray[Any]],
    ) -> Callable[[], dict[str, NDArray[Any]]]:
        engine, fault = self._engine, self._trt.fault
        self._trt.fault = None

        def work() -> dict[str, NDArray[Any]]:
            if fault:
                raise Fault(fault)
            feeds = {name: engine.array(name, addresses[name], shape) for name, shape in shapes.items()}
            outputs = engine.infer({**feeds, **host})
            for name in fixed:
                if outputs[name].size:
                    ctypes.memmove(addresses[name], outputs[name].ctypes.data, outputs[name].nbytes)
            return outputs

        return work

    def _give_open(self, stream: int, came: Mapping[str, NDArray[Any]]) -> bool:
        if not self._engine._said["open"]:
            return True
        self._trt.driver.run_pending(stream)
        for name in self._engine._said["open"]:
            if name not in came:
                return False  # the device is broken
            allocator, value = self._allocators[name], came[name].copy()
            before = self._addresses.get(name, 0)
            address = allocator.reallocate_output_async(name, before, max(1, value.nbytes), 256, stream)
            if self._refused("", not address, f"IExecutionContext::enqueueV3: Error Code 2: OutOfMemory for {name}"):
                return False
            allocator.notify_shape(name, value.shape)
            if value.nbytes:
                self._trt.driver.enqueue(
                    stream,
                    _writer(address, value),
                    writes=[Span(address, value.nbytes)],
                    name="inference",
                )
        return True

    def _report(self, stream: int) -> bool:
        if self.profiler is not None:
            self._trt.driver.run_pending(stream)
            for name, _ in self._engine._nodes:
                self.profiler.report_layer_time(name, 0.5)
        return True

    def _host_values(self) -> dict[str, NDArray[Any]]:
        said = self._engine._said["host"]
        return {name: self._engine.array(name, self._addresses[name], self._shapes[name]) for name in said}

    def _size(self, name: str, shape: Sequence[int]) -> int:
        return prod(shape) * np.dtype(_TYPES[self._engine._io[name].type][1]).itemsize

    def _refused(self, call: str, wrong: bool, why: str) -> bool:
        struck = bool(call) and self._trt.struck(call)
        if struck or wrong:
            said = f"IExecutionContext::{call}: Error Code 3: API Usage Error (made to fail)" if struck else why
            self._engine._logger.log(Severity.ERROR, said)
        return struck or wrong


@cache
def _session(model: bytes) -> Any:
    """Of this thread of work only, as a GPU would not take the CPU's cores."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def _free_with(owner: object, driver: FakeDriver, address: int) -> None:
    """Frees device memory when `owner` goes. TensorRT's destructors raise nothing; what is wrong is among the mistakes."""

    def free() -> None:
        with suppress(CudaError):
            driver.free(address)

    weakref.finalize(owner, free).atexit = False


def _writer(address: int, value: NDArray[Any]) -> Callable[[], None]:
    return lambda: np.copyto(np.ctypeslib.as_array((ctypes.c_uint8 * value.nbytes).from_address(address)), _raw(value))


def _raw(value: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(value.tobytes(), np.uint8)


@cache
def _nodes(model: bytes) -> Any:
    return onnx.load_from_string(model).graph.node
