"""All that an inspection says, as values: the terminal's tables and `--json` are two renderings of one `Report`.

The JSON is these classes, key by key, and docs/inspect.md explains it. A key that goes or changes its meaning raises `SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from visionpool_server.backends.survey import Counts, Support, Timing, Weights

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`bytes`: of the weights and what belongs to them; 0 where they lie on another server."""

    name: str
    version: str
    weights: str | None
    format: str
    bytes: int
    config: str | None  # the model.yaml in force
    backend: str


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape`: null for a dynamic dimension, all of it null where the rank is open. `dynamic`: the indices of the nulls."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str
    dynamic: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """`source`: where the task comes from, in a word; `reason`: in a sentence. `advice`: what to write to serve it as more."""

    task: str
    family: str | None
    source: str
    reason: str
    labels: int
    advice: str | None


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """`steps`: as `preprocess:` of model.yaml takes them. `size`: (height, width) of each prepared picture, if it is fixed."""

    input: str
    layout: str
    size: tuple[int, int] | None
    steps: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ShapeProposal:
    """What to fix a dynamic input to. `guessed`: nothing says so, and another value may be right.

    `needed`: it has to stand in model.yaml for a device that wants fixed shapes; else the server fixes it by itself.
    """

    input: str
    shape: tuple[int, ...]
    source: str
    guessed: bool
    needed: bool


@dataclass(frozen=True, slots=True)
class Split:
    """Where operators run. `hops`: tensors handed from one device to another; `hop_bytes`: their size, open ones left out.

    `subgraphs`: contiguous parts, each on one device, of which no two could be one. `compiled_subgraphs`: how many the runtime
    really makes, which may cut finer; None where it does not say, or does not compile the model so.
    """

    cpu_operators: tuple[str, ...]
    devices: Mapping[str, Counts]
    flops: Mapping[str, int]
    hops: int
    hop_bytes: int
    subgraphs: int
    compiled_subgraphs: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """On `device`, as asked for. `now` None: it cannot be told, and `note` says why. `proposal`: what would hop less."""

    device: str
    now: Split | None
    unplaced: Counts
    proposal: Split | None
    note: str | None


@dataclass(frozen=True, slots=True)
class OperatorCost:
    kind: str
    count: int
    flops: int


@dataclass(frozen=True, slots=True)
class Cost:
    """For one inference at `shapes`. `by_value`: operators whose outputs follow from values; `uncounted`: without FLOPs."""

    shapes: Mapping[str, tuple[int, ...]]
    flops: int
    operators: tuple[OperatorCost, ...]
    uncounted: Counts
    by_value: Counts
    parameters: int
    weights: tuple[Weights, ...]
    weight_bytes: int
    activation_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Measured. `timings`: one request at a time with the runtime's counters on; the rest without them, as it is served."""

    device: str
    precision: str
    batch: int
    seconds: float
    runs: int
    latency_ms: Mapping[str, float]  # mean, p50, p90, p99, min
    contexts: int
    throughput: float  # pictures, or rows, in a second with all contexts at work
    gflops_per_second: float | None
    operators_ms: float
    timings: tuple[Timing, ...]


@dataclass(frozen=True, slots=True)
class Report:
    model: ModelFacts
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    identity: Identity
    preprocessing: Preprocessing | None
    shapes: tuple[ShapeProposal, ...]
    devices: tuple[Support, ...]
    placement: Placement | None
    cost: Cost | None
    model_yaml: str  # what to paste; empty where nothing has to be set
    notes: tuple[str, ...]
    run: Run | None = None
    steps: tuple[Report, ...] = ()  # of a pipeline
    schema: int = field(default=SCHEMA)

    def json(self) -> bytes:
        return orjson.dumps(self, option=orjson.OPT_INDENT_2)
