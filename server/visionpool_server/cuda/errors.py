"""What the CUDA driver answers when it refuses, as exceptions, and what can be done about it."""

from __future__ import annotations

from collections.abc import Sequence

from visionpool.errors import BackendUnavailable

# After these the process can do nothing more on the device: every later call answers the same.
_STICKY = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        *("ILLEGAL_ADDRESS", "INVALID_ADDRESS_SPACE", "MISALIGNED_ADDRESS", "ILLEGAL_INSTRUCTION", "INVALID_PC"),
        *("LAUNCH_FAILED", "LAUNCH_TIMEOUT", "ASSERT", "HARDWARE_STACK_ERROR", "ECC_UNCORRECTABLE"),
        *("CONTEXT_IS_DESTROYED", "EXTERNAL_DEVICE", "CONTAINED", "MPS_CLIENT_TERMINATED"),
    )
)
_MEANINGS = {  # of statuses whose names leave open what to do
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the driver is older than the compiler that wrote this PTX: update the driver",
    "CUDA_ERROR_INVALID_PTX": "PTX for a newer GPU than this one, or damaged",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "compiled for another GPU",
    "CUDA_ERROR_INVALID_CONTEXT": "no device is current on this thread",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process has it for its own: see its compute mode in nvidia-smi",
}
_CONTAINER = "in a container, start it with --gpus all, on a host that has NVIDIA's container toolkit"
_REMEDIES = {  # for what cuInit answers
    "CUDA_ERROR_STUB_LIBRARY": "libcuda.so.1 is the toolkit's stub: take its stubs folder out of LD_LIBRARY_PATH",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated: restart the machine, or the container",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "update the driver, or take cuda-compat out of LD_LIBRARY_PATH",
    "CUDA_ERROR_SYSTEM_NOT_READY": "start nvidia-fabricmanager, which GPUs joined by NVSwitch need",
    "CUDA_ERROR_UNKNOWN": f"run nvidia-smi, and `modprobe nvidia-uvm` if it sees the GPU; {_CONTAINER}",
}


class CudaError(RuntimeError):
    """A driver call failed. `call`: its name, `status`: the driver's own name for what happened, as CUDA_ERROR_INVALID_VALUE."""

    def __init__(self, call: str, status: str) -> None:
        meaning = _MEANINGS.get(status)
        super().__init__(f"{call}: {status} ({meaning})" if meaning else f"{call}: {status}")
        self.call = call
        self.status = status

    @property
    def sticky(self) -> bool:
        """Whether the device is lost to this process: only a new one can use it again."""
        return self.status in _STICKY


class OutOfMemory(CudaError):
    """The device, or the host for pinned memory, has not as much left."""


class NoDriver(BackendUnavailable):
    """No binding is installed, or none of them finds an NVIDIA driver or device on this machine."""


def refused(call: str, status: str) -> CudaError:
    """The exception for a status that is not CUDA_SUCCESS."""
    return (OutOfMemory if status == "CUDA_ERROR_OUT_OF_MEMORY" else CudaError)(call, status)


def no_library() -> NoDriver:
    return NoDriver(
        "there is no NVIDIA driver on this machine: libcuda.so.1 is not found",
        hint=f"install NVIDIA's driver; {_CONTAINER}",
    )


def not_initialised(status: str) -> NoDriver:
    """For a cuInit that failed."""
    return NoDriver(
        f"the NVIDIA driver does not start: cuInit: {status}",
        hint=_REMEDIES.get(status, f"run nvidia-smi, which says more; {_CONTAINER}"),
    )


def too_old(package: str, missing: str) -> NoDriver:
    """For a driver that lacks what `package` was made for."""
    return NoDriver(
        f"the NVIDIA driver is too old for {package}: {missing}",
        hint=f"update the driver, or install a {package} of the CUDA version that nvidia-smi shows",
    )


def no_device(ordinal: int, there: Sequence[str]) -> NoDriver:
    """For a device that is not among `there`, the names of those that are."""
    sees = ", ".join(f"cuda:{i} ({name})" for i, name in enumerate(there))
    none = f"the driver sees none: look at CUDA_VISIBLE_DEVICES; {_CONTAINER}"
    return NoDriver(f"there is no device cuda:{ordinal}", hint=f"the driver sees {sees}" if sees else none)
