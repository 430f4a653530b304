"""What `runtime.options` of a model.yaml may say with this backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, model_validator
from visionpool.errors import InvalidModel

from visionpool_server.backends.tensorrt.api import Api, Capability

Megabytes = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]
_CURRENT = "current"
_BUILDING = (  # what changes the engine that is built
    *("workspace_mb", "builder_level", "hardware_compatibility", "version_compatible", "tf32", "aux_streams"),
    *("compute_capability", "profiling_verbosity"),
)
_NOT_OF_RTX = ("hardware_compatibility", "version_compatible")


def _listed(value: object) -> object:
    """One capability, or a list of them; YAML reads 8.6 as a number."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [str(each) if isinstance(each, float) else each for each in values]


Capabilities = Annotated[
    tuple[Annotated[str, Field(pattern=rf"^([0-9]{{1,2}}\.[0-9]|{_CURRENT})$")], ...], BeforeValidator(_listed)
]


class TensorRtSettings(BaseModel):
    """Of the library, of the build, and of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: Literal["tensorrt", "tensorrt_rtx"] | None = None  # None: the first of the two that loads
    workspace_mb: Megabytes | None = None  # device memory that layers may compute in; None: all there is
    timing_cache: StrictBool | Path = True  # a file, or one in the cache's folder
    builder_level: int | None = Field(
        None, strict=True, ge=0, le=5
    )  # more of it: longer builds, quicker engines; usually 3
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    version_compatible: StrictBool = False  # the engine also runs on newer versions of the same major one
    weight_streaming: StrictBool | Megabytes = False  # weights wait in RAM; a number: megabytes of them on the device
    tf32: StrictBool = False  # off: float32 results are those of any other runtime
    cuda_graphs: StrictBool = True  # one for each batch size, where the driver's interface has them
    aux_streams: int | None = Field(None, strict=True, ge=0, le=16)  # further streams that one inference may use
    compute_capability: Capabilities = ()  # TensorRT-RTX: what to build for, as 8.6, or `current`; none: all but 7.5
    profiling_verbosity: Literal["none", "layer_names_only", "detailed"] = "layer_names_only"

    @model_validator(mode="after")
    def _one_current(self) -> TensorRtSettings:
        if _CURRENT in self.compute_capability and len(self.compute_capability) > 1:
            raise ValueError("compute_capability: current stands alone")
        return self

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        pairs = (text.split(".") for text in self.compute_capability if text != _CURRENT)
        return tuple((int(major), int(minor)) for major, minor in pairs)

    @property
    def current(self) -> bool:
        """Whether to build for the GPU at hand, whichever it is."""
        return self.compute_capability == (_CURRENT,)

    @property
    def streams_weights(self) -> bool:
        return self.weight_streaming is not False

    def of_the_build(self) -> dict[str, Any]:
        """What a plan depends on, as plain values."""
        return {**self.model_dump(mode="json", include=set(_BUILDING)), "weight_streaming": self.streams_weights}

    def check(self, api: Api) -> None:
        """Raises InvalidModel for what this library does not have."""
        for key in _NOT_OF_RTX if api.rtx else ("compute_capability",):
            if key in self.model_fields_set and getattr(self, key) not in (False, "none", ()):
                raise InvalidModel(
                    f"runtime.options: {api.title} has no {key}",
                    hint="its engines run on any GPU of theirs" if api.rtx else "it builds for the GPU at hand",
                )
        targets = api.targets()
        if unknown := [f"{a}.{b}" for a, b in self.capabilities if (a, b) not in targets]:
            there = ", ".join(f"{a}.{b}" for a, b in targets)
            raise InvalidModel(
                f"runtime.options: compute_capability: {api.title} does not build for {', '.join(unknown)}",
                hint=f"it has {there}",
            )


def read_settings(options: Mapping[str, Any]) -> TensorRtSettings:
    """Raises InvalidModel that names what is wrong, and the keys allowed."""
    try:
        return TensorRtSettings.model_validate(dict(options))
    except ValidationError as error:
        raise InvalidModel(f"runtime.options: {'; '.join(map(_explained, error.errors()))}") from error


def _explained(mistake: Any) -> str:
    key = str(mistake["loc"][0]) if mistake["loc"] else ""
    if mistake["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed with the tensorrt backend: {', '.join(TensorRtSettings.model_fields)}"
    return f"{key}: {mistake['msg'].removeprefix('Value error, ')}".removeprefix(": ")
