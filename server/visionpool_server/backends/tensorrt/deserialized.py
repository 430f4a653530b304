"""From a plan to TensorRT's engine, on the GPU that is current; and what it says of its tensors, for plans that do not say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool.errors import BackendUnavailable

from visionpool_server.backends import Signature, TensorSpec
from visionpool_server.backends.tensorrt.api import Api, find_api
from visionpool_server.backends.tensorrt.devices import driver_of
from visionpool_server.backends.tensorrt.log import Errors, errors, logger
from visionpool_server.backends.tensorrt.messages import UnusablePlan, unusable
from visionpool_server.backends.tensorrt.plans import PlanFile, library_of
from visionpool_server.backends.tensorrt.plugins import register_standard_plugins
from visionpool_server.backends.tensorrt.tensors import Tensor, tensors_of
from visionpool_server.backends.tensorrt.tracebacks import forget_variables
from visionpool_server.cuda.gpu import Gpu


def deserialized(api: Api, plan: bytes, gpu: Gpu, *, own_code: bool = False) -> tuple[Any, Any]:
    """A trt.Runtime, and the trt.ICudaEngine that must not outlive it. `own_code`: version compatible plans bring some.

    `gpu` is there, so CUDA has been asked for its devices: without a driver, TensorRT would end the process here. Raises
    UnusablePlan, BackendUnavailable.
    """
    register_standard_plugins(api)
    with errors(api) as found:
        runtime: Any = _runtime(api, found)  # trt.Runtime
        runtime.engine_host_code_allowed = own_code
        unfit = api.unfit(runtime, plan)
        engine = None if unfit else runtime.deserialize_cuda_engine(plan)
    if engine is None:
        del runtime  # the exception's traceback would keep it longer than the device
        raise unusable(api, plan, gpu.properties.capability, gpu.properties.name, unfit or found.reason)
    return runtime, engine


def _runtime(api: Api, found: Errors) -> Any:
    try:
        return api.trt.Runtime(logger(api))
    except (TypeError, RuntimeError) as error:  # of pybind11, where the library gives nothing back
        reason = found.reason if found.messages else str(error).splitlines()[0]
        raise BackendUnavailable(
            f"{api.title} does not start: {reason}",
            hint="update the driver, or install a TensorRT for the CUDA version that nvidia-smi shows",
        ) from error


def asked(file: PlanFile) -> Signature:
    """By the first GPU that takes it. Raises BackendUnavailable where none does, InvalidModel for what cannot be served."""
    driver = driver_of()
    api = find_api(library_of(file))
    refusal: UnusablePlan | None = None
    for ordinal in range(driver.device_count()):
        gpu = Gpu(driver, ordinal, for_libraries=True)
        try:
            return signature_of(_tensors(api, file.plan, gpu), file.metadata)
        except UnusablePlan as error:
            refusal = refusal or error
        finally:
            gpu.close()
    assert refusal is not None  # there is a device
    raise refusal


def signature_of(tensors: tuple[Tensor, ...], metadata: Mapping[str, str]) -> Signature:
    specs = [(tensor, _spec(tensor)) for tensor in tensors]
    return Signature(
        tuple(spec for tensor, spec in specs if tensor.is_input),
        tuple(spec for tensor, spec in specs if not tensor.is_input),
        metadata,
    )


def _tensors(api: Api, plan: bytes, gpu: Gpu) -> tuple[Tensor, ...]:
    with gpu.current():
        runtime, engine = deserialized(api, plan, gpu)
        try:
            return tensors_of(api, engine)
        except BaseException as error:
            forget_variables(error)
            raise
        finally:
            del engine, runtime  # in this order, and while the device is current


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tuple(size if size >= 0 else None for size in tensor.shape), tensor.dtype.name)
