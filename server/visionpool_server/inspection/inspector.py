"""From files to a report: identify, propose shapes, survey, place, count; and run, where that is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from visionpool.errors import BackendUnavailable, SetupError

from visionpool_server.backends import LoadOptions
from visionpool_server.backends.choice import cuda_ordinal
from visionpool_server.backends.survey import Graph, Support, Survey, open_survey
from visionpool_server.inspection.advice import model_yaml
from visionpool_server.inspection.facts import facts_of, pipeline_report, preprocessing_of, tensor
from visionpool_server.inspection.gpus import notes_on_gpus
from visionpool_server.inspection.identity import Identified, identified, identity_of, load_on_paper
from visionpool_server.inspection.measure import measure
from visionpool_server.inspection.placement import move_to_cpu, moved_to_cpu, split
from visionpool_server.inspection.report import Cost, OperatorCost, Placement, Report, Split
from visionpool_server.inspection.shapes import fixed_shapes, proposals
from visionpool_server.models.files import ModelFiles

_INDICES = ("int32", "int64", "bool", "bytes")  # constants of these types are sizes and places, no parameters


def inspect_model(
    files: ModelFiles,
    device: str | None = None,
    backend: str | None = None,
    run_seconds: float | None = None,
    cache_dir: Path | None = None,
) -> Report:
    """`device`, `backend`: instead of what model.yaml says. `cache_dir`: of converted models. Raises SetupError, led by the
    model's name."""
    model = load_on_paper(files, device, backend, cache_dir)
    if not model.pipeline:
        return _named(identified(model, files), run_seconds)
    parts = [identified(part, None) for part in model.parts]
    return pipeline_report(model, files, tuple(_named(part, run_seconds) for part in parts))


def _named(known: Identified, run_seconds: float | None) -> Report:
    try:
        return _report(known, run_seconds)
    except SetupError as error:
        raise type(error)(f"{known.name}: {error.message}", hint=error.hint) from error


def _report(known: Identified, run_seconds: float | None) -> Report:
    notes = list(notes_on_gpus()) if cuda_ordinal(known.device) is not None else []
    proposed = proposals(known)
    shapes = fixed_shapes(known, proposed)
    options = replace(known.options, shapes=shapes)
    survey = open_survey(known.backend_name, known.source, options)
    graph = _graph(known, survey, options, notes)
    cost = _cost(graph) if graph else None
    devices = tuple(survey.support(name) for name in _asked(known.device, survey)) if survey else ()
    placement = _placement(known.device, options.cpu_operators, survey, graph, devices) if survey else None
    run = None
    if run_seconds:
        try:
            run = measure(known, survey, shapes, run_seconds, cost.flops if cost else None)
        except BackendUnavailable as error:  # the device is not on this machine: all else is still worth telling
            notes.append(f"not measured: {error.message}")
    return Report(
        model=facts_of(known),
        inputs=tuple(map(tensor, known.signature.inputs)),
        outputs=tuple(map(tensor, known.signature.outputs)),
        identity=identity_of(known),
        preprocessing=preprocessing_of(known),
        shapes=proposed,
        devices=devices,
        placement=placement,
        cost=cost,
        model_yaml=model_yaml(known, proposed, placement, devices),
        notes=tuple(notes),
        run=run,
    )


def _graph(known: Identified, survey: Survey | None, options: LoadOptions, notes: list[str]) -> Graph | None:
    """From the backend's survey, or from OpenVINO's of the same file."""
    weights = known.source.weights
    if survey is None and not (weights and weights.suffix == ".onnx" and find_spec("openvino")):
        notes.append(f"the {known.backend_name} backend shows neither the graph nor what it costs")
        return None
    graph = survey.graph() if survey else None
    if graph is None and find_spec("openvino"):
        notes.append(f"FLOPs and memory are counted on the graph as OpenVINO reads it: {known.backend_name} shows none")
        graph = _other_graph(known, options, notes)
    if graph is not None and not graph.fixed:
        notes.append(
            f"the graph does not take the shapes {dict(options.shapes)}: it is counted as it stands in the file"
        )
    return graph


def _other_graph(known: Identified, options: LoadOptions, notes: list[str]) -> Graph | None:
    try:
        other = open_survey("openvino", known.source, options)
        return other.graph() if other else None
    except SetupError as error:
        notes[-1] = f"FLOPs and memory are not counted: {error.message}"
        return None


def _asked(device: str, survey: Survey) -> Sequence[str]:
    """The devices of the machine, and those that the device string names."""
    virtual, colon, names = device.partition(":")
    listed = [name.strip().lstrip("-") for name in names.split(",")] if colon and virtual.isupper() else []
    asked = listed if virtual in ("HETERO", "AUTO", "MULTI") else [] if device == "AUTO" else [device]
    return list(dict.fromkeys([*(name for name in asked if name), *survey.devices()]))


def _placement(
    device: str, cpu_operators: Sequence[str], survey: Survey, graph: Graph | None, devices: Sequence[Support]
) -> Placement | None:
    """Where each operator would run. None where the runtime's devices are not OpenVINO's."""
    missing = [entry.device for entry in devices if not entry.available]
    if missing:
        note = f"where operators would run is not known: {', '.join(missing)} is not on this machine; inspect it where it is"
        if cuda_ordinal(device) is not None:
            return Placement(
                device, None, {}, None, note
            )  # whatever it lacks, NVIDIA's runtimes split it by themselves
        if by_value := sorted({operator.kind for operator in graph.operators if operator.by_value}) if graph else []:
            note += f"; the likeliest to have to move is what gives outputs of open size: cpu_operators: [{', '.join(by_value)}]"
        return Placement(device, None, {}, None, note)
    if graph is None or device == "AUTO" or device.startswith("AUTO:"):
        chooses = f"{device} chooses a whole device when the model is loaded"
        return Placement(device, None, {}, None, chooses) if device.startswith("AUTO") else None
    try:
        where = survey.placement(device)
    except SetupError as error:
        return Placement(device, None, {}, None, error.message)
    if not where:
        return None
    unplaced = Counter(operator.kind for operator in graph.operators if operator.name not in where)
    now = split(graph, where, cpu_operators)
    proposal = _proposal(device, graph, where, cpu_operators, now.hops)
    if unplaced:
        return Placement(device, now, dict(unplaced), proposal, None)
    try:
        now = _compiled(survey, device, now)
        return Placement(device, now, {}, proposal and _compiled(survey, device, proposal), None)
    except SetupError as error:
        return Placement(device, now, {}, proposal, f"it is not compiled so: {error.message}")


def _compiled(survey: Survey, device: str, found: Split) -> Split:
    return replace(found, compiled_subgraphs=survey.compiled_parts(device, found.cpu_operators))


def _proposal(
    device: str, graph: Graph, where: Mapping[str, str], cpu_operators: Sequence[str], hops: int
) -> Split | None:
    names = [name.strip() for name in device.partition(":")[2].split(",")]
    if not device.startswith("HETERO:") or "CPU" not in names:
        return None
    chosen = set(move_to_cpu(graph, where, names[0])) | set(cpu_operators)
    better = split(graph, moved_to_cpu(graph, where, chosen), tuple(sorted(chosen)))
    return better if better.hops < hops else None


def _cost(graph: Graph) -> Cost:
    counts = Counter(operator.kind for operator in graph.operators)
    flops: Counter[str] = Counter()
    for operator in graph.operators:
        flops[operator.kind] += operator.flops or 0
    weight_bytes = sum(weights.bytes for weights in graph.weights)
    return Cost(
        shapes=dict(graph.shapes),
        flops=sum(flops.values()),
        operators=tuple(
            OperatorCost(kind, counts[kind], flops[kind])
            for kind in sorted(counts, key=lambda kind: (-flops[kind], -counts[kind], kind))
        ),
        uncounted=dict(Counter(operator.kind for operator in graph.operators if operator.flops is None)),
        by_value=dict(Counter(operator.kind for operator in graph.operators if operator.by_value)),
        parameters=sum(weights.elements for weights in graph.weights if weights.dtype not in _INDICES),
        weights=graph.weights,
        weight_bytes=weight_bytes,
        activation_bytes=graph.activation_bytes,
        memory_bytes=weight_bytes + graph.activation_bytes,
    )
