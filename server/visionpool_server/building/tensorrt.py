"""Weights for TensorRT: ONNX whose own nodes say the precision, and an engine of it where one can be built here.

The file is the same for every GPU and either major version of TensorRT, whose networks are strongly typed; an engine is for a
kind of GPU and one version, and is built again from the file where it does not fit.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from visionpool.errors import BackendUnavailable, InvalidModel, InvalidSetting, SetupError

from visionpool_server.backends import LoadOptions, Precision
from visionpool_server.backends.choice import FIRST_GPU, cuda_ordinal
from visionpool_server.backends.onnx_file import read_onnx
from visionpool_server.building.calibration import Calibration, check_calibratable
from visionpool_server.building.pictures import Pictures
from visionpool_server.building.progress import Notify
from visionpool_server.building.runner import Runner, stand_in
from visionpool_server.building.subject import Subject
from visionpool_server.models.groups import AS_ONNX, device_of

WEIGHTS = "model.onnx"
PRECISIONS: tuple[Precision, ...] = ("int8", "f16", "f32")


def runner(device: str | None) -> Runner:
    """TensorRT on the GPU that is asked for, or on the first; where none is asked for or there, a stand-in on the CPU.

    Raises BackendUnavailable for a GPU that is asked for and not there, InvalidSetting for what is none.
    """
    from visionpool_server.backends.tensorrt.api import find_api
    from visionpool_server.backends.tensorrt.devices import driver_of

    device = device_of(device)
    if device == "CPU":
        return stand_in()
    ordinal = 0 if device is None else cuda_ordinal(device)
    if ordinal is None:
        raise InvalidSetting(
            f"TensorRT runs on NVIDIA GPUs, not on {device}",
            hint=f"--device {FIRST_GPU} measures on the first; without --device none need be here",
        )
    try:
        driver_of(ordinal)
        find_api()
    except SetupError:
        if device is not None:
            raise
        return stand_in()
    return Runner(device or FIRST_GPU, "tensorrt")


def check_file(weights: Path) -> None:
    """Raises InvalidModel for anything but ONNX files, and Paddle 3's programs, which are converted to it."""
    if weights.suffix not in AS_ONNX:
        raise InvalidModel(
            f"TensorRT is built from ONNX files, and this is {weights.name}",
            hint="export the model to ONNX; from Paddle: paddle2onnx, from TensorFlow: python -m tf2onnx.convert",
        )


def check(subject: Subject, precision: Precision) -> None:
    """Before anything is spent. Raises InvalidModel for a model that cannot be built in that precision, BackendUnavailable."""
    weights = subject.weights
    file = read_onnx(weights)
    if file.quantized:
        raise InvalidModel(
            f"{weights.name} is quantised already", hint="build from the model that it was made of, or serve it"
        )
    if precision == "f16" and "float16" in file.element_types and "float32" not in file.element_types:
        raise InvalidModel(f"{weights.name} is in half precision already", hint="serve it as it is")
    if precision == "int8":
        check_calibratable(subject)
    if precision != "f32":
        _check_installed(precision)


def _check_installed(precision: Precision) -> None:
    try:
        from visionpool_server.backends import onnx_precision  # noqa: F401

        if precision == "int8":
            import onnxruntime.quantization  # noqa: F401
    except ModuleNotFoundError as error:
        extras = "server,build,onnxruntime" if precision == "int8" else "server,build"
        raise BackendUnavailable(
            f"{precision} for TensorRT is made in the ONNX file, which needs the Python package {error.name!r}",
            hint=f"pip install 'visionpool[{extras}]'",
        ) from error


def write(subject: Subject, folder: Path, precision: Precision, pictures: Pictures | None, notify: Notify) -> str:
    """Writes the weights into `folder`; their file's name. Raises InvalidModel, BackendUnavailable."""
    target = folder / WEIGHTS
    if precision == "f32":
        _copy(subject.weights, target)
    elif precision == "f16":
        from visionpool_server.backends.onnx_precision import to_half

        notify("converting", 0, None)
        to_half(subject.weights, target)
    else:
        from visionpool_server.backends.onnx_quantization import quantize

        assert pictures is not None
        assert subject.model.family is not None
        inputs = Calibration(subject, subject.model.family, notify)
        quantize(subject.weights, target, pictures.calibration, inputs)
    return WEIGHTS


def _copy(source: Path, target: Path) -> None:
    """With the files that hold its large weights, whose names stand in it."""
    shutil.copyfile(source, target)
    for name in read_onnx(source).external:
        (target.parent / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / name, target.parent / name)


def cache_in(out: Path) -> Path | None:
    """Beside the weights, where serving looks for it: the GPU builds an engine when the model is loaded to be measured."""
    return out


def finish(built: Subject, precision: Precision, notify: Notify) -> Sequence[str]:
    """Builds the engine beside the weights, where that is not done yet; notes on what could not be done here."""
    if not built.runner.stands_in:  # it was built when it was loaded
        return ()
    where = (
        f"answers were compared on {built.runner.backend}, on the CPU; speed was not measured: no NVIDIA GPU was used"
    )
    try:
        return where, _engine_without_gpu(built.weights, built.asked[0], precision, notify)
    except SetupError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return where, f"no engine was built here: {error.message}{hint}"


def _engine_without_gpu(weights: Path, asked: LoadOptions, precision: Precision, notify: Notify) -> str:
    """Under the name that serving will look for. Raises InvalidModel, BackendUnavailable."""
    from visionpool_server.backends.tensorrt.api import find_api
    from visionpool_server.backends.tensorrt.builder import build_plan
    from visionpool_server.backends.tensorrt.loading import signature_of
    from visionpool_server.backends.tensorrt.plan_cache import plan_name
    from visionpool_server.backends.tensorrt.plans import write_plan
    from visionpool_server.backends.tensorrt.profiles import profiles_of
    from visionpool_server.backends.tensorrt.settings import read_settings
    from visionpool_server.cuda.driver import Properties

    settings = read_settings(asked.options)
    api = find_api(settings.library)
    if not api.builds_without_gpu or settings.current:
        return f"no engine was built here: {api.title} builds on the GPU that it is for, when the model is first loaded"
    options = replace(asked, device=FIRST_GPU, precision=precision)
    file = read_onnx(weights)
    profiles = profiles_of(file.inputs, options).each
    plan = build_plan(api, weights, profiles, settings, precision=precision, progress=notify, plugins=options.plugins)
    nowhere = Properties("any", (0, 0), 0, 0, "")  # such an engine's name does not depend on the GPU
    plugins, external = options.plugins, file.external
    name = plan_name(api, weights, nowhere, profiles, settings, precision=precision, external=external, plugins=plugins)
    write_plan(weights.parent / name, plan, signature_of(file))
    return f"{api.title} built {name} without a GPU, {len(plan) / 1e6:.1f} MB"
