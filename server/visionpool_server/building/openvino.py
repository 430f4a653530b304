"""Weights for OpenVINO: an IR, quantised by NNCF or with its weights stored in half as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visionpool.errors import InvalidModel, InvalidSetting

from visionpool_server.backends import Precision
from visionpool_server.backends.choice import cuda_ordinal
from visionpool_server.building.calibration import Calibration, check_calibratable
from visionpool_server.building.pictures import Pictures
from visionpool_server.building.progress import Notify
from visionpool_server.building.runner import Runner
from visionpool_server.building.subject import Subject
from visionpool_server.models.groups import device_of

WEIGHTS = "model.xml"
PRECISIONS: tuple[Precision, ...] = ("int8", "f16", "bf16", "f32")


def runner(device: str | None) -> Runner:
    """Both models are measured as they are served. Raises InvalidSetting for a device that OpenVINO never runs."""
    device = device_of(device)
    if device is not None and cuda_ordinal(device) is not None:
        raise InvalidSetting(f"OpenVINO does not run on {device}", hint="say --backend tensorrt")
    return Runner(device or "CPU")


def check_file(weights: Path) -> None:
    """Whatever the model is loaded from, OpenVINO reads, or says that it does not."""


def check(subject: Subject, precision: Precision) -> None:
    """Before anything is spent. Raises InvalidModel for a model that cannot be built in that precision."""
    from visionpool_server.backends.openvino.files import read_model
    from visionpool_server.backends.openvino.quantization import is_quantized

    if is_quantized(read_model(subject.source.weights)):
        raise InvalidModel(
            f"{subject.weights.name} is quantised already", hint="build from the model that it was made of, or serve it"
        )
    if precision == "int8":
        check_calibratable(subject)


def write(subject: Subject, folder: Path, precision: Precision, pictures: Pictures | None, notify: Notify) -> str:
    """Writes the weights into `folder`; their file's name. Raises InvalidModel, BackendUnavailable."""
    import openvino as ov

    from visionpool_server.backends.openvino.files import read_model
    from visionpool_server.backends.openvino.quantization import quantize

    model = read_model(subject.source.weights)
    if precision == "int8":
        assert pictures is not None
        assert subject.model.family is not None
        inputs = Calibration(subject, subject.model.family, notify)
        model = quantize(model, pictures.calibration, lambda path: list(inputs(path).values()))
    notify("writing", 0, None)
    ov.save_model(model, folder / WEIGHTS, compress_to_fp16=precision == "f16")
    return WEIGHTS


def cache_in(out: Path) -> Path | None:  # noqa: ARG001  the protocol's
    """What it compiles is for this machine's processor."""
    return None


def finish(built: Subject, precision: Precision, notify: Notify) -> Sequence[str]:  # noqa: ARG001  the protocol's
    """OpenVINO compiles when it loads: there is nothing to add."""
    return ()
