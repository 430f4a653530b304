"""INT8 as ONNX's own Q/DQ nodes, which TensorRT computes in 8 bits: ranges by onnxruntime's quantiser, and what it leaves to do.

    read, fold (onnxruntime) -> quantize_static -> what is not quantised reads unrounded numbers -> noisy layers back to float
    -> the rest in half precision -> checked

Each choice was measured: benchmarks/results/2026-11-22-int8-qdq-cpu.md.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter
from visionpool.errors import BackendUnavailable, InvalidModel, VisionpoolError

from visionpool_server.backends import onnx_graph as graphs
from visionpool_server.backends.onnx_graph import LAYERS, ModelProto
from visionpool_server.backends.onnx_noise import loudness_of
from visionpool_server.backends.onnx_precision import ROUNDING, halve

Sample = TypeVar("Sample")
Tensors = Callable[[Sample], Mapping[str, NDArray[Any]]]  # a sample's inputs by name

_OPSET = 19  # the first whose Q/DQ nodes take half precision
QUIETEST = 14.0  # dB; a layer that keeps less of a signal over the noise of its rounding stays in floating point
_SMALLEST = np.float16(2.0**-24)  # of half precision's numbers over zero
_MEASURED = 16  # samples that noise is measured on


@dataclass(frozen=True, slots=True)
class Quantized:
    """How many layers are computed in INT8, and the names of those that would lose too much."""

    layers: int
    noisy: tuple[str, ...]


def quantize(
    source: Path,
    target: Path,
    samples: Sequence[Sample],
    tensors: Tensors[Sample],
    *,
    half: bool = True,
    quietest: float = QUIETEST,
    method: str = "MinMax",
) -> Quantized:
    """Writes `source` with INT8 weights and activations, whose ranges come from the samples; one of them is in memory at a time.

    Weights are quantised by channel, activations by tensor, both around zero, as TensorRT takes them; biases are not. What
    follows the last learned layers is computed in single precision, all else that is not quantised in half, if `half`.
    Raises InvalidModel, BackendUnavailable.
    """
    _refuse_without_onnxruntime()
    with tempfile.TemporaryDirectory(prefix="visionpool-") as folder:
        folded, rounded = Path(folder) / "folded.onnx", Path(folder) / "rounded.onnx"
        original = _folded(source, folded)
        layers = [node.name for node in graphs.learned_layers(original) if _by_weights(original, node)]
        if not layers:
            raise InvalidModel("nothing in the model can be quantised: it has no convolution or product with weights")
        _with_ranges(source, folded, rounded, layers, reader=_Reader(samples, tensors), method=method)
        model = onnx.load(str(rounded))
        _put_back(model, original, set(layers))
        if half:
            _scales_for_half(model, original)
        some = samples[:: max(1, len(samples) // _MEASURED)]
        heard = loudness_of(model, original, layers, (tensors(sample) for sample in some))
        noisy = tuple(name for name in layers if heard[name] < quietest)
        _put_back(model, original, set(layers) - set(noisy))
        graphs.prune(model)
    if half:
        halve(model)
    graphs.write(model, target, source)
    return Quantized(len(layers) - len(noisy), noisy)


def _refuse_without_onnxruntime() -> None:
    try:
        import onnxruntime.quantization  # noqa: F401
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"INT8 for TensorRT is built by onnxruntime, and the Python package {error.name!r} is not installed",
            hint="pip install 'visionpool[server,build,onnxruntime]'",
        ) from error


def _folded(source: Path, target: Path) -> ModelProto:
    """With constants and batch norms folded by onnxruntime, in an opset whose Q/DQ nodes know channels and half precision."""
    import onnxruntime

    model = graphs.read(source)
    metadata = [(entry.key, entry.value) for entry in model.metadata_props]
    onnx.save(model, str(target), save_as_external_data=model.ByteSize() > 1 << 30, location=target.name + ".in")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.optimized_model_filepath = str(target)
    try:
        onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
        model = graphs.read(target)
        if graphs.opset(model) < _OPSET:
            model = version_converter.convert_version(model, _OPSET)
    except VisionpoolError:
        raise
    except Exception as error:  # onnxruntime's have no base class, the converter lets through what C++ raises
        raise InvalidModel(
            f"{source.name} cannot be brought into opset {_OPSET}: {graphs.reason(error)}",
            hint=f"export it with opset {_OPSET} or later",
        ) from error
    _tidy(model, metadata)
    onnx.save(model, str(target))
    return model


def _tidy(model: ModelProto, metadata: Sequence[tuple[str, str]]) -> None:
    """onnxruntime imports all of its domains, and may lose what exporters wrote."""
    used = {node.domain for node in model.graph.node} | {"", "ai.onnx"}
    kept = [(entry.domain, entry.version) for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in kept)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    graphs.name_nodes(model.graph)


def _by_weights(model: ModelProto, node: Any) -> bool:
    """Whether its second input is a constant, in single precision: a product of two pictures' tensors is left alone."""
    weights = graphs.weights_of(model).get(node.input[1])
    return weights is not None and weights.data_type == onnx.TensorProto.FLOAT


class _Reader(Generic[Sample]):
    """onnxruntime's CalibrationDataReader. It is asked for one sample at a time: else all activations of all would be kept."""

    def __init__(self, samples: Sequence[Sample], tensors: Tensors[Sample]) -> None:
        self._samples, self._tensors = samples, tensors
        self._rest: Iterator[Sample] = iter(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rest = iter(self._samples[start_index:end_index])

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        sample = next(self._rest, None)
        return None if sample is None else self._tensors(sample)


def _with_ranges(
    source: Path, folded: Path, target: Path, layers: Sequence[str], *, reader: _Reader[Any], method: str
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "CalibTensorRangeSymmetric": True,
        "CalibStridedMinMax": 1,  # for all methods, in spite of its name: so many samples at a time
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(LAYERS),
    }
    try:
        with _quiet():
            quantize_static(
                str(folded),
                str(target),
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(LAYERS),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=list(layers),
                calibrate_method=CalibrationMethod[method],
                extra_options=options,
            )
    except VisionpoolError:
        raise
    except Exception as error:  # its exceptions have no base class of their own
        raise InvalidModel(
            f"onnxruntime cannot quantise {source.name}: {graphs.reason(error)}", hint="build it with f16"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """It prints, and warns on the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _scales_for_half(model: ModelProto, original: ModelProto) -> None:
    """Scales that half precision holds, and weights rounded by them: a small scale loses bits there, and its channel would
    come out larger or smaller."""
    there, weights = graphs.weights_of(model), graphs.weights_of(original)
    makers = {node.output[0]: node for node in model.graph.node if node.op_type in ROUNDING}
    scales: set[str] = set()
    for node in makers.values():
        tensor = there[node.input[1]]
        scale = np.maximum(graphs.values(tensor).astype(np.float16), _SMALLEST).astype(np.float32)
        if tensor.name not in scales:
            scales.add(tensor.name)
            tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
    originals = {node.name: node for node in original.graph.node}
    for node in model.graph.node:
        rounded = makers.get(node.input[1]) if node.op_type in LAYERS else None
        if rounded is None or rounded.input[0] not in there:
            continue
        weight = graphs.values(weights[originals[node.name].input[1]])
        axis = next((attribute.i for attribute in rounded.attribute if attribute.name == "axis"), 1) % weight.ndim
        scale = graphs.values(there[rounded.input[1]])
        shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
        steps = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
        there[rounded.input[0]].CopyFrom(numpy_helper.from_array(steps, rounded.input[0]))


def _put_back(model: ModelProto, original: ModelProto, quantized: set[str]) -> None:
    """What is not quantised reads and has the numbers of the original: onnxruntime's quantiser hands what it has rounded for
    one layer to all readers of a tensor."""
    nodes = {node.name: node for node in original.graph.node}
    there, weights = graphs.weights_of(model), graphs.weights_of(original)
    for node in model.graph.node:
        if node.name in nodes and node.name not in quantized:
            node.input[:] = nodes[node.name].input
            for name in node.input:
                if name in weights and name not in there:
                    model.graph.initializer.append(weights[name])
                    there[name] = weights[name]
