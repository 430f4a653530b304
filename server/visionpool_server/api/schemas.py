"""The shapes of answers, for OpenAPI: made from the result classes, so that they cannot drift apart."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, Union, get_type_hints

from pydantic import BaseModel, Field, create_model
from visionpool.results import RESULT_TYPES, Result


def _schema(kind: type[Result]) -> type[BaseModel]:
    hints = get_type_hints(kind)
    columns: dict[str, Any] = {"type": (Literal[kind.type], kind.type)}
    for field in fields(kind):
        columns[field.name] = (hints[field.name], ... if field.default is MISSING else field.default)
    made: type[BaseModel] = create_model(kind.__name__, __doc__=kind.__doc__, **columns)
    return made


AnyResult: Any = Annotated[
    Union[tuple(_schema(kind) for kind in RESULT_TYPES.values())],  # noqa: UP007  made at run time
    Field(discriminator="type"),
]


class Timings(BaseModel):
    """Milliseconds; of several pictures, the slowest."""

    decode: float
    prepare: float
    queue: float
    infer: float
    finish: float


class PredictResponse(BaseModel):
    """One result for each picture, in the order they came."""

    model: str
    version: str
    results: list[AnyResult]
    timings_ms: Timings


class ModelSummary(BaseModel):
    name: str
    version: str
    task: str
    family: str
    state: str


class ModelList(BaseModel):
    models: list[ModelSummary]


class TensorDescription(BaseModel):
    name: str
    shape: list[int | None]
    dtype: str


class ShapeUse(BaseModel):
    """So many shapes of inputs are compiled, of at most `limit`; `dropped` gave way to others so far."""

    limit: int
    compiled: int
    dropped: int


class WorkerGroup(BaseModel):
    backend: str
    device: str
    precision: str
    count: int
    max_batch_size: int
    batch_sizes: list[int]
    operators: dict[str, list[str]]  # device -> the types of operators that it runs, where the runtime tells
    shapes: ShapeUse | None  # of dynamic inputs, where the runtime compiles for each
    advice: str | None  # what to set for it to run better


class BatchingDescription(BaseModel):
    max_queue_size: int
    max_queue_delay_us: int
    timeout_ms: int


class ModelDescription(ModelSummary):
    source: str
    labels: list[str]
    options: list[str]
    defaults: dict[str, float]
    activation: str | None  # what makes scores of the outputs: none, sigmoid, softmax, or what their values ask for
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]
    device: str
    precision: str
    workers: list[WorkerGroup]
    batching: BatchingDescription
    restarts: int
    steps: dict[str, str]  # of a pipeline: step -> model


class GpuUse(BaseModel):
    """What nvidia-ml says of a GPU now; null for what it does not tell. Memory in bytes, utilization 0 .. 1."""

    device: str
    name: str
    bus: str  # its PCI address
    memory_used: int | None
    memory_total: int | None
    memory_own: int | None
    utilization: float | None


class DeviceDescription(BaseModel):
    device: str
    backends: list[str]
    models: list[str]
    workers: int
    gpu: GpuUse | None


class DeviceList(BaseModel):
    devices: list[DeviceDescription]


def inlined(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of `model` without references: what is described by hand adds no components to the document."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def resolved(value: Any) -> Any:
        match value:
            case {"$ref": str(reference)}:
                return resolved(parts[reference.rpartition("/")[2]])
            case dict():
                return {key: resolved(inner) for key, inner in value.items()}
            case list():
                return [resolved(inner) for inner in value]
        return value

    made: dict[str, Any] = resolved(schema)
    return made


class ErrorDetail(BaseModel):
    code: str
    message: str
    hint: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail


PREDICT_EXAMPLE: dict[str, Any] = {
    "model": "shapes",
    "version": "1",
    "results": [
        {
            "type": "detection",
            "boxes": [[219.3, 407.8, 349.4, 462.7]],
            "scores": [0.962],
            "label_ids": [3],
            "labels": ["star"],
            "rotated_boxes": [],
            "masks": [],
            "contain_masks": False,
        }
    ],
    "timings_ms": {"decode": 2.1, "prepare": 0.4, "queue": 0.1, "infer": 4.2, "finish": 0.2},
}
