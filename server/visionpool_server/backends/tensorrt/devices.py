"""The GPU that a model is to run on: asked of CUDA before anything of TensorRT is touched, which takes its absence badly."""

from __future__ import annotations

from visionpool.errors import BackendUnavailable

from visionpool_server.backends.choice import FIRST_GPU, cuda_ordinal
from visionpool_server.backends.tensorrt.messages import not_a_gpu
from visionpool_server.cuda.driver import Driver, Properties, open_driver
from visionpool_server.cuda.errors import CudaError, no_device
from visionpool_server.cuda.gpu import Gpu


def ordinal_of(device: str) -> int:
    """Raises BackendUnavailable for what is none of NVIDIA's, InvalidModel for what looks like one."""
    ordinal = cuda_ordinal(FIRST_GPU if device in ("cuda", "GPU") else device)
    if ordinal is None:
        raise not_a_gpu(device)
    return ordinal


def driver_of(ordinal: int = 0) -> Driver:
    """A driver that has this device. Raises NoDriver where none has."""
    driver = open_driver()
    try:
        count = driver.device_count()
        if ordinal >= count:
            raise no_device(ordinal, [driver.properties(index).name for index in range(count)])
    except CudaError as error:
        raise BackendUnavailable(f"the NVIDIA driver does not answer: {error}", hint="nvidia-smi says more") from error
    return driver


def properties_of(device: str) -> Properties:
    """Raises BackendUnavailable, of which NoDriver is one."""
    ordinal = ordinal_of(device)
    return driver_of(ordinal).properties(ordinal)


def open_gpu(device: str) -> Gpu:
    """To be closed. Raises BackendUnavailable, of which NoDriver is one."""
    ordinal = ordinal_of(device)
    driver = driver_of(ordinal)
    try:
        return Gpu(driver, ordinal, for_libraries=True)
    except CudaError as error:
        raise BackendUnavailable(f"{device} cannot be used: {error}", hint="nvidia-smi shows who uses it") from error
