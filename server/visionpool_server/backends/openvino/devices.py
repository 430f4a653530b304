"""Where a model runs: the device string, compiling for it with its properties, and what HETERO places where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import openvino as ov
from visionpool.errors import BackendUnavailable, InvalidModel

from visionpool_server.backends import LoadOptions
from visionpool_server.backends.openvino.files import core, reason
from visionpool_server.backends.openvino.shape_cache import kernels_for
from visionpool_server.cpu import cpu_count, usable_cores

PRECISION = "INFERENCE_PRECISION_HINT"
_NONE: Mapping[str, str] = {}
ONE_THREAD = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}
_STRUCTURE = {"Parameter", "Constant", "Result"}  # graph nodes that no device "runs"
_FORMS = "a device is CPU, GPU, GPU.1, NPU or AUTO, or several: HETERO:GPU,CPU, AUTO:GPU,CPU, MULTI:GPU,CPU"
_NEEDS = {
    "GPU": "an Intel GPU needs the OpenCL loader (libOpenCL.so.1) and Intel's compute runtime; /dev/dri in a container",
    "NPU": "an Intel NPU needs Intel's NPU driver and the Level Zero loader (libze_loader.so.1); /dev/accel in a container",
}


def compile_model(model: ov.Model, options: LoadOptions, more: Mapping[str, str] = _NONE) -> ov.CompiledModel:
    """`more`: properties over those that the options ask for. Raises InvalidModel."""
    try:
        return core().compile_model(model, options.device, _properties(model, options) | dict(more))
    except RuntimeError as error:
        with suppress(RuntimeError):  # not every device answers the query
            _check_operators(model, core().query_model(model, options.device), options.device)
        message = f"OpenVINO cannot compile the model for {options.device}: {reason(error)}"
        raise InvalidModel(message, hint=_hint_for(str(error), options)) from error


def _hint_for(error: str, options: LoadOptions) -> str | None:
    if any(name in error for name in options.options):
        return "check runtime.options in model.yaml"
    if options.device == "CPU" or _devices(options.device) != [options.device]:
        return None
    return f"runtime.device: {_hetero(options.device)} runs on the CPU what {options.device} lacks"


def _properties(model: ov.Model, options: LoadOptions) -> dict[str, Any]:
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT"}
    devices = _devices(options.device)
    if options.contexts and devices == [options.device]:
        key = "NUM_STREAMS" if options.device == "CPU" else "PERFORMANCE_HINT_NUM_REQUESTS"
        properties[key] = str(options.contexts)
    if options.device == "CPU" and cpu_count() < len(usable_cores()):  # a quota, which OpenVINO does not see
        properties["INFERENCE_NUM_THREADS"] = str(cpu_count())
    if options.precision and options.precision != "int8":  # which the graph says itself; the hint is for the rest of it
        properties[PRECISION] = options.precision
    elif options.device == "CPU":
        properties[PRECISION] = "f32"  # its own default is bf16
    elif "CPU" in devices or devices == ["AUTO"]:
        properties["DEVICE_PROPERTIES"] = {"CPU": {PRECISION: "f32"}}
    if options.cache_dir:
        properties["CACHE_DIR"] = str(options.cache_dir)
    if options.device == "CPU" and any(port.partial_shape.is_dynamic for port in model.inputs):
        properties["CPU_RUNTIME_CACHE_CAPACITY"] = str(kernels_for(model, options.max_shapes))
    return properties | dict(options.options)


def place(model: ov.Model, options: LoadOptions) -> dict[str, tuple[str, ...]]:
    """Pins `cpu_operators` to the CPU. Device -> operators as HETERO places them; empty for other devices."""
    device, wanted = options.device, options.cpu_operators
    if not device.startswith("HETERO:"):
        if wanted:
            raise InvalidModel(
                f"cpu_operators needs HETERO with a second device, and the device is {device}",
                hint=f"say runtime.device: {_hetero(device)}, or leave cpu_operators out",
            )
        return {}
    operators = [node for node in model.get_ops() if node.get_type_name() not in _STRUCTURE]
    present = {node.get_type_name() for node in operators}
    if unknown := set(wanted) - present:
        raise InvalidModel(
            f"cpu_operators names {', '.join(sorted(unknown))}, which the model does not have",
            hint=f"it has {', '.join(sorted(present))}",
        )
    found = core().query_model(model, device)
    _check_operators(model, found, device)
    targets = {
        node.get_friendly_name(): "CPU"
        if node.get_type_name() in wanted
        else found.get(node.get_friendly_name(), "CPU")
        for node in model.get_ops()
    }
    if wanted:  # otherwise HETERO places them itself
        _pin(model, targets)
    placed: dict[str, set[str]] = {}
    for node in operators:
        placed.setdefault(targets[node.get_friendly_name()], set()).add(node.get_type_name())
    return {target: tuple(sorted(kinds)) for target, kinds in sorted(placed.items())}


def _pin(model: ov.Model, targets: dict[str, str]) -> None:
    """Says in the graph which device each operator runs on. What follows from constants alone goes where its consumers
    run, if they agree: elsewhere, a weight would come to them as a tensor, and plugins want it to be a constant."""
    ordered = model.get_ordered_ops()
    constant = set[str]()
    for node in ordered:
        inputs = [port.get_node().get_friendly_name() for port in node.input_values()]
        if node.get_type_name() == "Constant" or (inputs and constant.issuperset(inputs)):
            constant.add(node.get_friendly_name())
    for node in reversed(ordered):
        name = node.get_friendly_name()
        users = {
            targets[port.get_node().get_friendly_name()]
            for output in node.outputs()
            for port in output.get_target_inputs()
        }
        if name in constant and len(users) == 1:
            targets[name] = users.pop()
        node.get_rt_info()["affinity"] = targets[name]


def _check_operators(model: ov.Model, placed: Mapping[str, str], device: str) -> None:
    """Raises InvalidModel that names the operators that `device` lacks, and the setting that helps."""
    lacking = {node.get_type_name() for node in model.get_ops() if node.get_friendly_name() not in placed}
    missing = sorted(lacking - _STRUCTURE)
    if not missing:
        return
    devices = _devices(device)
    raise InvalidModel(
        f"{device} cannot run {', '.join(missing)}",
        hint="no device named has them: export the model without, or say runtime.backend: onnxruntime"
        if "CPU" in devices
        else f"say runtime.device: {_hetero(device)} in model.yaml, with runtime.cpu_operators: [{', '.join(missing)}]",
    )


def _devices(device: str) -> list[str]:
    """The single devices that a device string names."""
    virtual, _, names = device.partition(":")
    return [name.strip() for name in names.split(",")] if virtual in ("HETERO", "AUTO", "MULTI") and names else [device]


def _hetero(device: str) -> str:
    """The same devices, and the CPU for what they lack."""
    others = [name for name in _devices(device) if name not in ("CPU", "AUTO") and not name.startswith("-")]
    return f"HETERO:{','.join(others) or 'GPU'},CPU"


def check_device(device: str) -> None:
    """Raises BackendUnavailable for a device that this machine does not have, or that is none."""
    if device in ("HETERO", "MULTI") or device.endswith(":") or (device and "" in _devices(device)):
        raise BackendUnavailable(f"device {device!r} does not name its devices", hint=_FORMS)
    for name in _devices(device):
        if device == "AUTO" or (name.startswith("-") and device.startswith("AUTO:")) or is_here(name):
            continue
        known = core().available_devices
        raise BackendUnavailable(
            f"OpenVINO finds no device {name!r} on this machine; it finds {', '.join(known)}",
            hint=_hint_about(name, known),
        )


def is_here(name: str) -> bool:
    """Whether the machine has this one device. OpenVINO lists a lone GPU as GPU, and takes GPU.0 for it."""
    known = core().available_devices
    kind, _, index = name.partition(".")
    if any(name in (one, one.partition(".")[0]) for one in known):
        return True
    return bool(index) and kind in known and index in core().get_property(kind, "AVAILABLE_DEVICES")


def _hint_about(name: str, known: Sequence[str]) -> str | None:
    kind = name.partition(".")[0]
    if name.startswith("cuda"):
        return f"{name} is a device of runtime.backend: onnxruntime or tensorrt; without a backend the device chooses"
    return None if kind in {one.partition(".")[0] for one in known} else _NEEDS.get(kind, _FORMS)


def precision_of(compiled: ov.CompiledModel) -> str | None:
    """What it really computes in, whatever was asked for; several devices have one each, in the order in which they are
    named. None where the device does not tell."""
    supported = compiled.get_property("SUPPORTED_PROPERTIES")
    if PRECISION in supported:
        return str(compiled.get_property(PRECISION).get_type_name())
    if "DEVICE_PROPERTIES" not in supported:
        return None
    told: Mapping[str, Mapping[str, Any]] = compiled.get_property("DEVICE_PROPERTIES")
    each = [told.get(name, {}).get(PRECISION) for name in compiled.get_property("EXECUTION_DEVICES")]
    return "/".join(dict.fromkeys(str(kind.get_type_name()) for kind in each if kind)) or None
