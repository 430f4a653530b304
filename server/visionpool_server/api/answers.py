"""What is answered about predictions and models, whatever the transport: plain values, ready to be written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from visionpool.results import Result

from visionpool_server.backends import TensorSpec
from visionpool_server.families import Options
from visionpool_server.models.loader import Model
from visionpool_server.service import Prediction


def slowest(predictions: Sequence[Prediction]) -> Mapping[str, float]:
    """Milliseconds per stage, of several pictures the slowest."""
    if len(predictions) == 1:
        return predictions[0].timings
    return {stage: max(p.timings[stage] for p in predictions) for stage in predictions[0].timings}


def result_fields(result: Result) -> dict[str, Any]:
    """What `Result.to_dict` gives, without copying: orjson writes tuples and dataclasses as they are."""
    return {"type": result.type, **{field.name: getattr(result, field.name) for field in fields(result)}}


def summary(model: Model) -> dict[str, Any]:
    """A model in a few words."""
    return {
        "name": model.name,
        "version": model.version,
        "task": model.task,
        "family": model.family_name,
        "state": "ready",
    }


def describe(model: Model) -> dict[str, Any]:
    """All that is known of a model, as JSON values."""
    groups: list[dict[str, Any]] = []
    for group, placement in zip(model.pool.groups, model.pool.placements, strict=True):
        groups.append(
            {
                "backend": placement.backend,
                "device": placement.device,
                "precision": placement.precision,
                "count": group.count,
                "max_batch_size": group.engine.max_batch_size,
                "batch_sizes": list(group.engine.batch_sizes),
                "operators": {device: list(kinds) for device, kinds in placement.devices.items()},
                "shapes": asdict(use) if (use := group.engine.shape_use()) else None,
                "advice": placement.advice,
            }
        )
    batching, taking = model.bundle.batching, model.taking_pictures
    defaults = taking.defaults.given() if taking else {}
    options = sorted(taking.accepts.intersection(Options.names())) if taking else []
    return {
        **summary(model),
        "source": model.source,
        "labels": list(model.labels),
        "options": options,
        "defaults": {name: value for name, value in defaults.items() if name in options},
        "activation": _activation(model),
        "inputs": [_tensor(spec) for spec in model.signature.inputs],
        "outputs": [_tensor(spec) for spec in model.signature.outputs],
        "device": ", ".join(dict.fromkeys(group["device"] for group in groups)),
        "precision": ", ".join(dict.fromkeys(group["precision"] for group in groups)),
        "workers": groups,
        "batching": {
            "max_queue_size": batching.max_queue_size,
            "max_queue_delay_us": batching.max_queue_delay_us,
            "timeout_ms": batching.timeout_ms,
        },
        "restarts": model.pool.restarts,
        "steps": steps_of(model),
    }


def steps_of(model: Model) -> dict[str, str]:
    """The models that a pipeline is made of, by step."""
    steps = model.pipeline.steps if model.pipeline else {}
    return {step: named.name if isinstance(named, Model) else named for step, named in steps.items()}


def _activation(model: Model) -> str | None:
    """What is applied to the outputs to make scores of them; None for a family that does not ask."""
    if model.family is None:
        return None
    return "by their values" if model.family.activation is None else model.family.activation or None


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "shape": shape, "dtype": spec.dtype}
