"""Layers that TensorRT does not have: libraries, and Python files, that add them to its registry before a model is parsed.

A library is TensorRT's own affair (`IPluginRegistry::loadLibrary`, of a build that exports getCreators). A Python file has a
function `register(trt)`, which registers its creators and returns them: examples/tensorrt_plugin shows one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Lock
from typing import Any

from visionpool.errors import InvalidModel

from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.log import logger

_lock = Lock()
_loaded: dict[Path, Any] = {}  # for ever, as in TensorRT's registry, which does not keep Python's objects alive


def register_standard_plugins(api: Api) -> None:
    """Those that come with TensorRT, such as EfficientNMS_TRT. To be called before a model is parsed or a plan read."""
    if api.plugins:
        api.trt.init_libnvinfer_plugins(logger(api), "")


def load_plugins(api: Api, paths: Sequence[Path]) -> None:
    """Adds each, once a process. Raises InvalidModel for one that cannot be loaded."""
    if paths and api.rtx:
        raise InvalidModel(
            "TensorRT-RTX takes no plugins",  # its parser would end the process on a node that names one
            hint="install TensorRT itself: pip install 'visionpool[server,tensorrt]'",
        )
    for path in paths:
        with _lock:
            key = path.resolve()
            if key not in _loaded:
                _loaded[key] = _load(api, key)


def _load(api: Api, path: Path) -> Any:
    if not path.is_file():
        raise InvalidModel(f"plugins: {path} is no file", hint="paths are relative to the folder of model.yaml")
    if path.suffix == ".py":
        return _registered(api, path)
    registry = api.trt.get_plugin_registry()
    handle = registry.load_library(str(path))
    if handle is None:
        raise InvalidModel(
            f"plugins: TensorRT cannot load {path.name}",
            hint="it has to be built for this version of TensorRT, export getCreators, and find its own libraries",
        )
    return handle


def _registered(api: Api, path: Path) -> Any:
    spec = spec_from_file_location(f"visionpool_plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.register(api.trt) or module
    except Exception as error:  # it is the operator's own code
        raise InvalidModel(
            f"plugins: {path.name} fails: {type(error).__name__}: {error}",
            hint="it needs a function register(trt) that registers its creators and returns them",
        ) from error
