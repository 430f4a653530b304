"""What the two models are run by to be compared: as they are served, or by something else that reads the same files.

An engine of TensorRT runs on an NVIDIA GPU alone. Where none is, what was built is still an ONNX file, whose answers on the CPU
say what its precision costs; nothing then says how fast it will be.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from visionpool_server.backends import Backend, Engine, LoadOptions, Signature, Source, get_backend
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.groups import Defaults

STAND_INS = ("onnxruntime", "openvino")  # the first that is installed is taken; both read ONNX in any of our precisions


@dataclass(frozen=True, slots=True)
class Runner:
    """`backend` None: the one that serves the model. `stands_in`: it is not the runtime that the model is built for, and how
    fast it is says nothing."""

    device: str
    backend: str | None = None
    stands_in: bool = False

    def defaults(self, cache_dir: Path | None) -> Defaults:
        """Where a backend is named, it and the device win over what model.yaml says."""
        return Defaults(self.device, backend=self.backend, cache_dir=cache_dir, on_paper=self.backend is not None)

    def opener(self, written: Bundle) -> Opener:
        """For one model, whose model.yaml says `written`."""
        return Opener(self, own=written.runtime.backend == self.backend)


def stand_in() -> Runner:
    """On the CPU. Where nothing is installed that could, whoever loads by it says what to install."""
    installed = (name for name in STAND_INS if find_spec(name))
    return Runner("CPU", next(installed, STAND_INS[0]), stands_in=True)


@dataclass(slots=True)
class Opener:
    """Opens backends for the loader. `own`: what model.yaml says of its runtime is meant for this one. `asked`: what the
    model would have been loaded with, had its own runtime been here."""

    runner: Runner
    own: bool
    asked: list[LoadOptions] = field(default_factory=list)

    def __call__(self, name: str) -> Backend:
        backend = get_backend(name)
        return backend if self.runner.backend is None else _Other(backend, self)


@dataclass(frozen=True, slots=True)
class _Other:
    """A backend that is handed models whose model.yaml speaks to another."""

    backend: Backend
    opener: Opener

    def read(self, source: Source) -> Signature:
        return self.backend.read(source)

    def load(self, source: Source, options: LoadOptions) -> Engine:
        self.opener.asked.append(options)
        if self.opener.own and not self.opener.runner.stands_in:
            return self.backend.load(source, options)
        tensorrt = self.opener.runner.backend == "tensorrt"
        return self.backend.load(
            source,
            replace(
                options,
                precision=None,
                options={},
                cpu_operators=(),
                profiles=options.profiles if tensorrt else (),
                plugins=options.plugins if tensorrt else (),
            ),
        )
