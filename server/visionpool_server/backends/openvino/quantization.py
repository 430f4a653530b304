"""INT8: whether a graph is quantised, and NNCF's post-training quantisation of one that is not.

NNCF is an extra of its own and only `visionpool build` needs it: what serves is a plain IR.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import openvino as ov
from numpy.typing import NDArray
from openvino.passes import ConstantFolding, Manager
from visionpool.errors import BackendUnavailable, InvalidModel, VisionpoolError

from visionpool_server.backends.openvino.files import reason

Sample = TypeVar("Sample")

_WEIGHTED = {
    *("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"),
}
_STRUCTURE = {"Constant", "Parameter", "Result"}
_INTEGERS = {"i8", "u8", "i4", "u4"}
_LEARNED = 256  # fewer weights are arithmetic in disguise, such as YOLOv8's 16 distances that a convolution sums up


def is_quantized(model: ov.Model) -> bool:
    """Whether the graph says where its numbers are integers, or has integer weights."""
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind in ("FakeQuantize", "FakeConvert") or (kind == "Convert" and _is_integer_weight(node.input_value(0))):
            return True
    return False


def _is_integer_weight(port: Any) -> bool:
    constant = port.get_node().get_type_name() == "Constant"
    return constant and port.get_element_type().get_type_name() in _INTEGERS and len(port.get_shape()) > 1


def check_precision(model: ov.Model, weights: Path | None, precision: str | None) -> None:
    """Raises InvalidModel where int8 is asked for, and the file holds no int8 model: no flag makes it one."""
    if precision == "int8" and not is_quantized(model):
        name = weights.name if weights else "the model"
        raise InvalidModel(
            f"precision: int8, and {name} is not quantised",
            hint=f"visionpool build {name} --precision int8 --calibration PICTURES -o OUT",
        )


def quantize(
    model: ov.Model, samples: Sequence[Sample], tensors: Callable[[Sample], Sequence[NDArray[Any]]]
) -> ov.Model:
    """`model` with INT8 weights and activations, whose ranges come from the samples; `tensors`: its inputs in order.

    Ranges are symmetric (NNCF's preset PERFORMANCE), biases are corrected, and what follows the last learned layers stays in
    floating point; all three were measured: benchmarks/results/2026-11-21-int8-cpu.md. Raises InvalidModel, BackendUnavailable.
    """
    nncf = _nncf()
    _fold_constants(model)
    ignored = nncf.IgnoredScope(names=after_the_last_learned_layer(model), validate=False)
    dataset = nncf.Dataset(samples, lambda sample: dict(enumerate(tensors(sample))))
    try:
        with _quiet(nncf):
            found = nncf.quantize(
                model,
                dataset,
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(samples),
                ignored_scope=ignored,
            )
    except VisionpoolError:
        raise
    except Exception as error:  # NNCF lets through whatever the runtime and its own graph code raise
        raise InvalidModel(f"NNCF cannot quantise the model: {reason(error)}", hint="build it with f16") from error
    if not is_quantized(found):
        raise InvalidModel("nothing in the model can be quantised: it has no convolution or product with weights")
    return found


def _fold_constants(model: ov.Model) -> None:
    """ONNX's biases come reshaped on the fly, and NNCF's bias correction sees constants only."""
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)


def after_the_last_learned_layer(model: ov.Model) -> list[str]:
    """The names of the nodes whose results reach no further learned layer: a detector's arithmetic on boxes and scores.

    Boxes in pixels and scores in 0..1 end in one tensor there, whose 256 steps would leave nothing of the scores. Empty
    where no layer is a learned one.
    """
    ordered = model.get_ordered_ops()
    learned = {node.get_friendly_name() for node in ordered if _is_learned(node)}
    leads = set(learned)  # to a learned layer, or is one
    for node in reversed(ordered):
        users = (port.get_node() for output in node.outputs() for port in output.get_target_inputs())
        if any(user.get_friendly_name() in leads for user in users):
            leads.add(node.get_friendly_name())
    rest = [node.get_friendly_name() for node in ordered if node.get_type_name() not in _STRUCTURE]
    return [name for name in rest if name not in leads] if learned else []


def _is_learned(node: ov.Node) -> bool:
    if node.get_type_name() not in _WEIGHTED:
        return False
    return any(_weights(node.input_value(index)) >= _LEARNED for index in (0, 1))


def _weights(port: Any) -> int:
    """How many numbers the constant behind `port` has; 0 where there is none."""
    node = port.get_node()
    while node.get_type_name() in ("Convert", "Reshape", "Multiply", "Subtract", "Transpose"):
        node = node.input_value(0).get_node()
    return prod(node.get_output_shape(0)) if node.get_type_name() == "Constant" else 0


def _nncf() -> Any:
    """Raises BackendUnavailable where it is not installed."""
    kept = logging.getLoggerClass()
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"INT8 is built by NNCF, and the Python package {error.name!r} is not installed",
            hint="pip install 'visionpool[server,openvino,build]'",
        ) from error
    finally:
        logging.setLoggerClass(kept)  # NNCF's import makes every later logger one of its own kind
    return nncf


@contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """Its log up to errors goes nowhere, nor do its bars, which it draws on rich's shared console, as we never do."""
    from rich import get_console

    nncf.set_log_level(logging.ERROR)
    console = get_console()
    shown, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = shown
