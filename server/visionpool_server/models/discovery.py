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
from visionpool_server.models import paddle, ultralytics
from visionpool_server.models.bundle import Bundle, read_yaml
from visionpool_server.models.guess import guess_family

# What exporters write beside a model, and who reads it; the first that is there speaks.
_CONFIGS: Mapping[str, Callable[[dict[str, Any]], Bundle]] = {
    "infer_cfg.yml": paddle.detection,
    "inference_cls.yaml": paddle.classification,
}


@dataclass(frozen=True, slots=True)
class Discovery:
    """A bundle made from what was found, and where: `source` is for the operator's eyes."""

    bundle: Bundle
    source: str


def discover(folder: Path, signature: Signature) -> Discovery:
    """Raises InvalidModel for a file that is there but makes no sense."""
    for name, read in _CONFIGS.items():
        if (folder / name).exists():
            return Discovery(read(_map_from(folder / name)), name)
    if (folder / "metadata.yaml").exists():
        data = _map_from(folder / "metadata.yaml")
        return Discovery(ultralytics.bundle_from(data, signature, "metadata.yaml"), "metadata.yaml")
    if "names" in signature.metadata:
        source = "the file's metadata"
        data = ultralytics.unquoted(signature.metadata)
        return Discovery(ultralytics.bundle_from(data, signature, source), source)
    family = guess_family(signature, None)
    bundle = Bundle(family=family, task=TASKS[family]) if family else Bundle()
    return Discovery(bundle, "the shape of its outputs" if family else "nothing")


def _map_from(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise InvalidModel(f"{path}: a map of keys is expected")
    return data
