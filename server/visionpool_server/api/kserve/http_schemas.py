"""The bodies and answers of KServe v2 over HTTP, for OpenAPI only: what is read and written by hand is described here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Parameter = bool | int | float | str
Parameters = Annotated[dict[str, Parameter], Field(description="strings, numbers and booleans by name")]
Natural = Annotated[int, Field(ge=0, le=2**64 - 1)]


class Nothing(BaseModel):
    """An empty object: it is done."""


class KserveError(BaseModel):
    error: str


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]  # -1: any size


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelConfig(BaseModel):
    """Triton's `ModelConfig` with all of its fields, of which the foremost are described."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]


class RequestTensor(BaseModel):
    """Has one of `data`, the parameter `binary_data_size`, and the parameter `shared_memory_region`."""

    name: Annotated[str, Field(min_length=1)]
    datatype: str
    shape: list[Natural]
    parameters: Parameters | None = None
    data: Annotated[list[Any] | None, Field(description="nested as the shape says, or flat")] = None


class RequestOutput(BaseModel):
    name: Annotated[str, Field(min_length=1)]
    parameters: Annotated[
        Parameters | None, Field(description="binary_data, classification, shared_memory_region, ...")
    ] = None


class InferenceRequest(BaseModel):
    id: str | None = None
    parameters: Annotated[Parameters | None, Field(description="binary_data_output, timeout, priority, ...")] = None
    inputs: Annotated[list[RequestTensor], Field(min_length=1)]
    outputs: list[RequestOutput] | None = None


class ResponseTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Parameter] | None = None
    data: Annotated[list[Any] | None, Field(description="flat; NaN and infinity are null")] = None


class InferenceResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())
    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Parameter] | None = None
    outputs: list[ResponseTensor]


class IndexRequest(BaseModel):
    ready: Annotated[bool, Field(description="only models that are ready")] = False


class IndexEntry(BaseModel):
    name: str
    version: str | None = None
    state: str | None = None
    reason: str | None = None


class ControlRequest(BaseModel):
    parameters: Annotated[Parameters | None, Field(description="config, file:<path> (base64), unload_dependents")] = (
        None
    )


class Duration(BaseModel):
    count: int
    ns: int


class InferStatistics(BaseModel):
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(BaseModel):
    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(BaseModel):
    name: str
    version: str
    last_inference: int  # milliseconds since 1970
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: list[BatchStatistics]


class Statistics(BaseModel):
    model_config = ConfigDict(protected_namespaces=())
    model_stats: list[ModelStatistics]


class RegionRequest(BaseModel):
    key: str
    byte_size: Natural
    offset: Natural = 0


class Region(BaseModel):
    name: str
    key: str
    offset: int
    byte_size: int


class CudaRegionRequest(BaseModel):
    raw_handle: dict[str, str]
    device_id: Natural
    byte_size: Natural


class TraceSettings(BaseModel):
    """Settings that are left out stay as they are; null takes back what was set."""

    model_config = ConfigDict(extra="allow")
    trace_level: list[str] | None = None
    trace_rate: str | None = None
    trace_count: str | None = None
    log_frequency: str | None = None
    trace_file: str | None = None


class LogSettings(BaseModel):
    """Settings that are left out stay as they are."""

    model_config = ConfigDict(extra="allow")
    log_file: str | None = None
    log_info: bool | None = None
    log_warning: bool | None = None
    log_error: bool | None = None
    log_verbose_level: Natural | None = None
    log_format: str | None = None
