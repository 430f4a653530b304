"""What the engine of a plan says of its tensors, for plans that do not say it themselves."""

from __future__ import annotations

from collections.abc import Mapping

from visionpool_server.backends import Signature, TensorSpec
from visionpool_server.backends.tensorrt.api import Api, find_api
from visionpool_server.backends.tensorrt.devices import driver_of
from visionpool_server.backends.tensorrt.log import errors, logger
from visionpool_server.backends.tensorrt.messages import UnusablePlan, unusable
from visionpool_server.backends.tensorrt.plans import PlanFile, library_of
from visionpool_server.backends.tensorrt.tensors import Tensor, tensors_of
from visionpool_server.cuda.gpu import Gpu


def asked(file: PlanFile) -> Signature:
    """By the first GPU that takes it. Raises BackendUnavailable where none does, InvalidModel for what cannot be served."""
    driver = driver_of()
    api = find_api(library_of(file))
    refusal: UnusablePlan | None = None
    for ordinal in range(driver.device_count()):
        gpu = Gpu(driver, ordinal)
        try:
            return signature_of(_tensors(api, file.plan, gpu), file.metadata)
        except UnusablePlan as error:
            refusal = refusal or error
        finally:
            gpu.close()
    assert refusal is not None  # there is a device
    raise refusal


def signature_of(tensors: tuple[Tensor, ...], metadata: Mapping[str, str]) -> Signature:
    specs = {tensor: _spec(tensor) for tensor in tensors}
    return Signature(
        tuple(spec for tensor, spec in specs.items() if tensor.is_input),
        tuple(spec for tensor, spec in specs.items() if not tensor.is_input),
        metadata,
    )


def _tensors(api: Api, plan: bytes, gpu: Gpu) -> tuple[Tensor, ...]:
    with gpu.current(), errors(api) as found:
        runtime = api.trt.Runtime(logger(api))
        unfit = api.unfit(runtime, plan)
        engine = None if unfit else runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise unusable(api, plan, gpu.properties.capability, gpu.properties.name, unfit or found.reason)
        try:
            return tensors_of(api, engine)
        finally:
            del engine, runtime  # in this order, and while the device is current


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tuple(size if size >= 0 else None for size in tensor.shape), tensor.dtype.name)
