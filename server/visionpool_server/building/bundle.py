"""The model.yaml of what was built: all that was found or written about the original, so that it serves without it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from visionpool_server.backends import Precision
from visionpool_server.building.subject import Subject
from visionpool_server.models.files import CONFIG
from visionpool_server.models.labels import resolve_labels

_OF_A_SERVER = ("backend", "url", "model")
_OF_ANOTHER_RUNTIME = ("device", "options")
_OF_TENSORRT = ("profiles", "plugins", "prepare_on")
_OF_OPENVINO = ("cpu_operators", "max_shapes")
_NEVER_FILES = {"name", "task", "family", "weights", "labels", "runtime", "aliases", "decode", "raw_pictures"}


def write_bundle(subject: Subject, folder: Path, weights: str, *, backend: str, precision: Precision) -> None:
    """Writes `folder`/model.yaml, and copies the files that it names."""
    content = described(subject, weights, backend=backend, precision=precision)
    for key in content.keys() - _NEVER_FILES:
        content[key] = _with_files(content[key], subject.files.folder, folder)
    runtime = content["runtime"]
    if "plugins" in runtime:
        runtime["plugins"] = [_with_files(name, subject.files.folder, folder) for name in runtime["plugins"]]
    head = f"# Built by visionpool from {subject.weights.name}, in {precision}.\n"
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    (folder / CONFIG).write_text(head + text, encoding="utf-8")


def described(subject: Subject, weights: str, *, backend: str, precision: Precision) -> dict[str, Any]:
    """The keys of model.yaml. Labels are written out, whichever file had them."""
    model = subject.model
    content: dict[str, Any] = {"task": model.task}
    if model.family is not None:
        content["family"] = model.family_name
    content["weights"] = weights
    said = model.bundle.model_dump(mode="json", exclude_defaults=True)
    if model.bundle.labels is not None:
        said["labels"] = list(resolve_labels(model.bundle.labels, subject.files.folder))
    left_out = _left_out(model.bundle.runtime.backend, backend)
    runtime = {key: value for key, value in said.pop("runtime", {}).items() if key not in left_out}
    content["runtime"] = {"backend": backend, **runtime, "precision": precision}
    if said.get("decode") == "gpu" and "prepare_on" in left_out:
        del said["decode"]  # the one goes with the other
    if isinstance(model.bundle.workers, tuple) and not _same(model.bundle.runtime.backend, backend):
        del said["workers"]
    return content | {key: value for key, value in said.items() if key not in content}


def _left_out(before: str | None, after: str) -> tuple[str, ...]:
    """The keys of `runtime` that mean nothing to the new one."""
    other = () if _same(before, after) else _OF_ANOTHER_RUNTIME
    return (*_OF_A_SERVER, *other, *(_OF_OPENVINO if after == "tensorrt" else _OF_TENSORRT))


def _same(before: str | None, after: str) -> bool:
    """Whether what model.yaml says of devices and their options was meant for that runtime; it need not name OpenVINO."""
    return before == after or (before is None and after == "openvino")


def _with_files(value: Any, folder: Path, out: Path) -> Any:
    """`value`, where every text that names a file beside the original names a copy of it beside the new one."""
    if isinstance(value, dict):
        return {key: _with_files(item, folder, out) for key, item in value.items()}
    if not isinstance(value, str) or not value or not (folder / value).is_file():
        return value
    copy = out / Path(value).name
    shutil.copyfile(folder / value, copy)
    return copy.name
