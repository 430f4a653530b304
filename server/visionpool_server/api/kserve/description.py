"""What the server and its models say of themselves over KServe v2: metadata, configuration and statistics.

The metadata list the model's own tensors and nothing else, as clients that read them expect (Triton's image_client takes one
input and one output). The further ways in and out of a vision model are in `model_properties`.

A configuration with a `max_batch_size` leaves the batch dimension out of `dims`, and clients put it before them. With 0 the
`dims` are the whole shapes: of a model without a batch dimension, and of one that has a tensor of nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from tritonclient.grpc import model_config_pb2 as mc
from tritonclient.grpc import service_pb2 as pb

from visionpool_server.api.answers import steps_of
from visionpool_server.api.kserve.contract import RESULT, Contract, Port
from visionpool_server.backends import Engine
from visionpool_server.batching import DEFAULT_PRIORITY, PRIORITY_LEVELS
from visionpool_server.families import picture_shape
from visionpool_server.models.loader import Model
from visionpool_server.statistics import BatchStatistics, Snapshot

_ALWAYS = (
    *("classification", "model_repository", "schedule_policy", "model_configuration", "binary_tensor_data"),
    *("parameters", "statistics", "logging"),
)
_COMPUTE = ("compute_input", "compute_infer", "compute_output")
_STAGES = ("success", "fail", "queue", *_COMPUTE)
# Triton's names; OpenVINO's is the backend's, whatever it read.
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_GPU = re.compile(r"(?:GPU|cuda)(?:[.:](\d+))?", re.IGNORECASE)


def server_metadata(*, shared_memory: bool, tracing: bool) -> Any:
    """Name, version and the extensions that work; `tracing`: whether trace files can be written."""
    extensions = [*_ALWAYS]
    if shared_memory:
        extensions.append("system_shared_memory")
    if tracing:
        extensions.append("trace")
    return pb.ServerMetadataResponse(name="visionpool", version=version("visionpool"), extensions=extensions)


def model_metadata(model: Model) -> Any:
    """The model's own tensors. -1 is a free dimension, the batch among them; a scalar's shape is empty, and so is one of free
    rank."""
    contract = Contract(model)
    any_rows = _takes_any_rows(model, contract)
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=[model.version],
        platform=_platform(model),
        inputs=[_tensor(port, any_rows=any_rows) for port in contract.inputs.values()],
        outputs=[_tensor(port, any_rows=any_rows) for port in contract.outputs.values()],
    )


def model_properties(model: Model) -> dict[str, str]:
    """What the metadata have no field for: the task, and for a vision model how pictures go in and results come out."""
    contract = Contract(model)
    properties = {"task": model.task, "labels_count": str(len(model.labels))}
    if contract.picture is not None:
        ways = ["UINT8 [N,H,W,3] or [H,W,3]: raw pictures"]
        if model.pipeline or contract.inputs[contract.picture].datatype != "BYTES":
            ways.insert(0, "BYTES [N] or [N,1]: encoded pictures")
        properties |= {
            "picture_input": contract.picture,
            "picture_datatypes": "; ".join(ways),
            "picture_color": model.bundle.raw_pictures,
        }
        if RESULT not in contract.outputs:
            properties["result_output"] = f"{RESULT}: BYTES, each picture's result as JSON"
    if _takes_any_rows(model, contract):
        properties["request_rows"] = "any"
    if model.bundle.aliases:
        properties["aliases"] = json.dumps(dict(model.bundle.aliases))
    return properties


def model_config(model: Model) -> Any:
    """How the model is run, in Triton's terms: where it is batched, dims leave the batch dimension out.

    A scalar has no dims (Triton's own files say [1] and reshape it); a tensor of free rank has none either.
    """
    contract = Contract(model)
    limit, any_rows = _max_batch_size(model, contract), _takes_any_rows(model, contract)

    def dims(port: Port) -> list[int]:
        return port.shown(batched=any_rows)[1 if limit else 0 :]

    config = mc.ModelConfig(
        name=model.name,
        platform=_platform(model),
        backend="" if model.pipeline else model.pool.placements[0].backend,
        version_policy=mc.ModelVersionPolicy(latest=mc.ModelVersionPolicy.Latest(num_versions=1)),
        max_batch_size=limit,
        input=[_input(port, contract, dims(port)) for port in contract.inputs.values()],
        output=[
            mc.ModelOutput(name=port.name, data_type=_data_type(port), dims=dims(port))
            for port in contract.outputs.values()
        ],
        instance_group=[_group(model, i) for i in range(len(model.pool.groups))],
        dynamic_batching=_batching(model) if limit else None,
        ensemble_scheduling=_ensemble(model) if model.pipeline else None,
    )
    for name, value in model_properties(model).items():
        config.parameters[name].string_value = value
    return pb.ModelConfigResponse(config=config)


def statistics(models: Iterable[Model]) -> Any:
    """What each model has done since it was loaded. There is no cache of responses: its counts stay 0."""
    return pb.ModelStatisticsResponse(model_stats=[_statistics(model) for model in models])


def _max_batch_size(model: Model, contract: Contract) -> int:
    """How many rows are joined at most: of pictures, for a vision model. 0 where its own tensors have no batch dimension, or
    one of them no other, which `dims` could not show."""
    if not _batched(model) or any(shape is None or len(shape) < 2 for shape in _shapes(contract)):
        return 0
    if contract.picture and _firsts(contract) - {None, 1}:
        return 0  # its file fixes another: pictures fill it up, own tensors come whole
    return max(group.engine.max_batch_size for group in model.pool.groups)


def _takes_any_rows(model: Model, contract: Contract) -> bool:
    """Whether the first dimension of own tensors is a batch, of which a request may bring more than are joined.

    A vision model may do so for pictures alone, which come one by one: where nobody asks for more, its file decides.
    """
    if contract.picture is None:
        return _batched(model)
    limit = _max_batch_size(model, contract)
    return limit > 1 or (limit == 1 and _firsts(contract) == {None})


def _batched(model: Model) -> bool:
    return all(group.engine.batched for group in model.pool.groups)


def _firsts(contract: Contract) -> set[int | None]:
    return {shape[0] for shape in _shapes(contract) if shape}


def _shapes(contract: Contract) -> list[tuple[int | None, ...] | None]:
    return [port.shape for port in (*contract.inputs.values(), *contract.outputs.values())]


def _platform(model: Model) -> str:
    if model.pipeline:
        return "ensemble"
    backend = model.pool.placements[0].backend
    return _PLATFORMS.get(backend, backend)


def _tensor(port: Port, *, any_rows: bool) -> Any:
    shape = port.shown(batched=any_rows)
    return pb.ModelMetadataResponse.TensorMetadata(name=port.name, datatype=port.datatype, shape=shape)


def _data_type(port: Port) -> int:
    number: int = mc.DataType.Value("TYPE_STRING" if port.datatype == "BYTES" else f"TYPE_{port.datatype}")
    return number


def _input(port: Port, contract: Contract, dims: list[int]) -> Any:
    made = mc.ModelInput(name=port.name, data_type=_data_type(port), dims=dims)
    if port.name == contract.picture and port.shape is not None and len(port.shape) > 2:
        layout = picture_shape(port.shape).layout
        made.format = mc.ModelInput.Format.Value("FORMAT_NONE" if layout == "CHW" else f"FORMAT_{layout}")
    return made


def _batching(model: Model) -> Any:
    batching = model.bundle.batching
    policy = mc.ModelQueuePolicy(
        timeout_action=mc.ModelQueuePolicy.REJECT,
        default_timeout_microseconds=batching.timeout_ms * 1000,
        allow_timeout_override=True,
        max_queue_size=batching.max_queue_size,
    )
    return mc.ModelDynamicBatching(
        preferred_batch_size=sorted({size for group in model.pool.groups for size in group.engine.batch_sizes}),
        max_queue_delay_microseconds=batching.max_queue_delay_us,
        priority_levels=PRIORITY_LEVELS,
        default_priority_level=DEFAULT_PRIORITY,
        default_queue_policy=policy,
    )


def _ensemble(model: Model) -> Any:
    """The steps of a pipeline, by Triton's word for what is made of models. What goes between them is not tensors alone."""
    return mc.ModelEnsembling(
        step=[mc.ModelEnsembling.Step(model_name=name, model_version=-1) for name in steps_of(model).values()]
    )


def _group(model: Model, index: int) -> Any:
    group = model.pool.groups[index]
    kind, gpus = _kind(group.engine, model.pool.placements[index].device)
    return mc.ModelInstanceGroup(name=f"{model.name}_{index}", count=group.count, kind=kind, gpus=gpus)


def _kind(engine: Engine, device: str) -> tuple[int, list[int]]:
    """Triton knows the CPU, GPUs by number, and models that place themselves: other devices, several, another server."""
    kinds = mc.ModelInstanceGroup
    if engine.on_cpu:
        return kinds.KIND_CPU, []
    gpu = _GPU.fullmatch(device)
    return (kinds.KIND_GPU, [int(gpu[1] or 0)]) if gpu else (kinds.KIND_MODEL, [])


def _statistics(model: Model) -> Any:
    """Of both pools of a vision model: pictures go through one, ready-made tensors through the other."""
    tensors = model.tensors.loaded if model.tensors else None
    done = [pool.statistics.snapshot() for pool in (model.pool, tensors) if pool]
    message = pb.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=max(one.last_inference for one in done),
        inference_count=sum(one.inference_count for one in done),
        execution_count=sum(one.execution_count for one in done),
    )
    batches: dict[int, Any] = {}
    for one in done:
        _add(message.inference_stats, one, _STAGES)
        for batch in one.batches:
            _add(batches.setdefault(batch.size, pb.InferBatchStatistics(batch_size=batch.size)), batch, _COMPUTE)
    message.batch_stats.extend(batches[size] for size in sorted(batches))
    return message


def _add(message: Any, more: Snapshot | BatchStatistics, stages: Iterable[str]) -> None:
    for stage in stages:
        total, duration = getattr(message, stage), getattr(more, stage)
        total.count += duration.count
        total.ns += duration.ns
