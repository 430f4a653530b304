"""What a model's own files say: labels, task, family, preprocessing. Nothing is guessed that a file does not show.

Sources, the first that speaks: what Paddle's exporters write beside a model, Ultralytics' `metadata.yaml`, the metadata
inside an ONNX file, and last the shapes of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.backends import Signature
from visionpool_server.families import TASKS
from visionpool_server.models import (
    ocr,
    paddle,
    paddle_classification,
    paddle_outputs,
    paddle_segmentation,
    paddlex,
    ultralytics,
)
from visionpool_server.models.bundle import Bundle, read_yaml
from visionpool_server.models.guess import guess_family

# What exporters write beside a model, and who reads it; the first that is there speaks.
_CONFIGS: Mapping[str, Callable[[dict[str, Any]], Bundle]] = {
    "infer_cfg.yml": paddle.detection,
    "inference_cls.yaml": paddle.classification,
    "inference_rec.yaml": paddle_classification.features,
    "deploy.yaml": paddle_segmentation.segmentation,
    "inference.yml": paddlex.bundle_from,
}


@dataclass(frozen=True, slots=True)
class Discovery:
    """A bundle made from what was found, and where: `source` is for the operator's eyes."""

    bundle: Bundle
    source: str
    guessed: bool = False  # from its tensors alone


def discover(folder: Path, signature: Signature, said: str | None = None) -> Discovery:
    """`said`: the family that model.yaml says. Raises InvalidModel for a file that is there but makes no sense."""
    for name, read in _CONFIGS.items():
        if (folder / name).exists():
            data = _map_from(folder / name)
            return _with_labels(paddle_outputs.fitted(read(data), data, signature, name), folder, name)
    if (folder / "metadata.yaml").exists():
        data = _map_from(folder / "metadata.yaml")
        return Discovery(ultralytics.bundle_from(data, signature, "metadata.yaml", said), "metadata.yaml")
    if "names" in signature.metadata:
        source = "the file's metadata"
        data = ultralytics.unquoted(signature.metadata)
        return Discovery(ultralytics.bundle_from(data, signature, source, said), source)
    if "character" in signature.metadata:
        return Discovery(ocr.from_metadata(signature.metadata), "the file's metadata")
    family = guess_family(signature, None)
    bundle = Bundle(family=family, task=TASKS[family]) if family else Bundle()
    return Discovery(bundle, "the shape of its outputs" if family else "nothing", guessed=True)


def _with_labels(bundle: Bundle, folder: Path, source: str) -> Discovery:
    """PaddleClas names the file of the labels by its place where the model was trained: here it lies beside the model, or
    nowhere, and the classes are numbers then."""
    if not isinstance(bundle.labels, str):
        return Discovery(bundle, source)
    places = (bundle.labels, Path(bundle.labels).name)
    here = next((place for place in places if (folder / place).is_file()), None)
    found = bundle.model_copy(update={"labels": here})
    return Discovery(found, source if here else f"{source}, whose labels {bundle.labels!r:.80} are not there")


def _map_from(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise InvalidModel(f"{path}: a map of keys is expected")
    return data
