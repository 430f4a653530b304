"""The options of a prediction, from a query string or a map: validated, named as in Ultralytics and FastDeploy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from visionpool.errors import InvalidOption

from visionpool_server.families import NO_OPTIONS, Options
from visionpool_server.service import Ask


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [str(part) if type(part) is int else part for part in value] if isinstance(value, list) else value


class PredictOptions(BaseModel):
    """What may stand in the query string of a prediction."""

    model_config = ConfigDict(extra="forbid")
    score_threshold: Annotated[float | None, Field(ge=0, le=1, description="Only what scores higher.")] = None
    iou_threshold: Annotated[
        float | None,
        Field(ge=0, le=1, description="Overlap over which the weaker of two boxes of a class goes."),
    ] = None
    top_k: Annotated[int | None, Field(ge=1, le=100_000, description="Classification: so many classes.")] = None
    max_detections: Annotated[int | None, Field(ge=1, le=100_000, description="Detection: so many boxes.")] = None
    compact: Annotated[
        bool | None, Field(description="Masks as COCO's runs and maps of classes as PNG, instead of a number a pixel.")
    ] = None
    score_map: Annotated[bool | None, Field(description="Segmentation: the score of each pixel too.")] = None
    classes: Annotated[
        list[str] | None,
        BeforeValidator(_split),
        Field(max_length=1000, description="Only these: names or ids, with commas between."),
    ] = None
    timeout_ms: Annotated[float | None, Field(gt=0, le=3_600_000, description="Give up after so long.")] = None


_NOTHING = Ask()


def read_ask(values: Mapping[str, Any]) -> Ask:
    """Raises InvalidOption, naming the option, and the known ones where it is not known."""
    if not values:
        return _NOTHING
    try:
        said = PredictOptions.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(PredictOptions.model_fields)
            raise InvalidOption(f"unknown option {name!r}", hint=f"known: {known}") from error
        raise InvalidOption(f"{name}: {first['msg']}") from error
    given = said.model_dump(exclude_none=True, exclude={"timeout_ms"})
    if "classes" in given:
        given["classes"] = tuple(given["classes"])
    options = Options(**given) if given else NO_OPTIONS
    return Ask(options, said.timeout_ms / 1000 if said.timeout_ms else None)
