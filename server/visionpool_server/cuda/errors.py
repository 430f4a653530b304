"""What the CUDA driver answers when it refuses, as exceptions."""

from __future__ import annotations

from visionpool.errors import BackendUnavailable


class CudaError(RuntimeError):
    """A driver call failed. `call`: its name, `status`: the driver's own name for what happened, as CUDA_ERROR_INVALID_VALUE."""

    def __init__(self, call: str, status: str) -> None:
        super().__init__(f"{call}: {status}")
        self.call = call
        self.status = status


class OutOfMemory(CudaError):
    """The device, or the host for pinned memory, has not as much left."""


class NoDriver(BackendUnavailable):
    """No binding is installed, or none of them finds an NVIDIA driver or device on this machine."""
