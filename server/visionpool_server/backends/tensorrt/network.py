"""From an ONNX file to TensorRT's network: strongly typed, so that each layer computes in the types that the file says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visionpool.errors import BackendUnavailable, InvalidModel

from visionpool_server.backends import TensorSpec
from visionpool_server.backends.onnx_file import read_onnx, with_own_names
from visionpool_server.backends.tensorrt import log
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.plugins import register_standard_plugins

_TYPES = ("float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool")
_NO_LAYER = ("UNSUPPORTED_NODE", "INVALID_NODE", "UNSUPPORTED_NODE_ATTR", "UNSUPPORTED_NODE_DATATYPE")
_MOST = 5  # operators that one message names


class Network:
    """What was parsed, with all that has to live as long: the parser does not keep its network, nor that its builder."""

    def __init__(self, name: str, builder: Any, network: Any, parser: Any) -> None:
        self.name = name  # of its file
        self.builder = builder
        self.network = network
        self.parser = parser

    def close(self) -> None:
        """Frees them, last made first."""
        self.parser = None
        self.network = None
        self.builder = None

    def inputs(self) -> list[Any]:  # of trt.ITensor
        network = self.network
        return [network.get_input(index) for index in range(network.num_inputs)]

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """As TensorRT infers them; None where they follow from the inputs' shapes or values."""
        network = self.network
        tensors = [network.get_output(index) for index in range(network.num_outputs)]
        return {tensor.name: tuple(size if size >= 0 else None for size in tensor.shape) for tensor in tensors}


@contextmanager
def parsed(api: Api, source: Path | bytes, name: str) -> Iterator[Network]:
    """An ONNX file, or its bytes where no weights lie beside it. Raises InvalidModel, BackendUnavailable."""
    if isinstance(source, Path) and not api.plugins:
        _refuse_plugins(api, source)
    with log.errors(api) as errors:
        builder = _builder(api, errors)
        network = builder.create_network(1 << int(api.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = api.trt.OnnxParser(network, log.logger(api))
        whole = Network(name, builder, network, parser)
        try:
            if not _parse(parser, source):
                raise _refusal_of(api, parser, name, errors)
            if not network.num_layers or not network.num_outputs:  # junk may well be parsed, to nothing
                raise InvalidModel(f"{name} is no ONNX file: there is nothing in it", hint="export it again")
            yield whole
        finally:
            del network, parser, builder
            whole.close()


def taken_nodes(api: Api, path: Path) -> set[int] | None:
    """The places of those nodes of an ONNX file that TensorRT has layers for; None: all of them. Raises BackendUnavailable."""
    with log.errors(api) as errors:
        builder = _builder(api, errors)
        network = builder.create_network(1 << int(api.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = api.trt.OnnxParser(network, log.logger(api))
        try:
            if parser.supports_model_v2(path.read_bytes(), str(path)):
                return None
            taken = {node for index in range(parser.num_subgraphs) for node in parser.get_subgraph_nodes(index)}
            return taken - {parser.get_error(index).node() for index in range(parser.num_errors)}
        finally:
            del parser, network, builder  # in this order


def _parse(parser: Any, source: Path | bytes) -> bool:
    """Weights beside the file are found by its path."""
    if isinstance(source, bytes):
        return bool(parser.parse(source))
    renamed = with_own_names(source)
    return bool(parser.parse(renamed, str(source)) if renamed else parser.parse_from_file(str(source)))


def _refuse_plugins(api: Api, path: Path) -> None:
    """Raises InvalidModel for a node that TensorRT-RTX would take for one of its own plugins: some of these end the process."""
    registry = api.trt.get_plugin_registry()
    if found := {creator.name for creator in registry.all_creators} & read_onnx(path).operators:
        raise InvalidModel(
            f"{api.title} has no layer for {', '.join(sorted(found))} of {path.name}, and takes no plugins",
            hint="install TensorRT itself, which takes them, or say runtime.backend: onnxruntime",
        )


def _builder(api: Api, errors: log.Errors) -> Any:
    """Without a GPU, TensorRT's own cannot be made."""
    register_standard_plugins(api)
    try:
        return api.trt.Builder(log.logger(api))
    except (TypeError, RuntimeError) as error:  # of pybind11, where the library gives nothing back
        reason = errors.reason if errors.messages else str(error).splitlines()[0]
        raise BackendUnavailable(
            f"{api.title} cannot build here: {reason}",
            hint="it needs an NVIDIA GPU and its driver; TensorRT-RTX builds without",
        ) from error


def _refusal_of(api: Api, parser: Any, name: str, errors: log.Errors) -> InvalidModel:
    try:
        return _refusal(api, parser, name, errors)
    except UnicodeDecodeError as error:  # of a node's name, which is in what the parser says
        return InvalidModel(f"{name} is a damaged ONNX file: {error}", hint="export it again")


def _refusal(api: Api, parser: Any, name: str, errors: log.Errors) -> InvalidModel:
    """What the parser says of the nodes that it does not take."""
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    operators = list(dict.fromkeys(error.node_operator() for error in found if _of_a_layer(error)))
    if operators:
        more = f" and {len(operators) - _MOST} more" if len(operators) > _MOST else ""
        first = next(error for error in found if error.node_operator() == operators[0])
        return InvalidModel(
            f"{api.title} has no layer for {', '.join(operators[:_MOST])}{more} of {name}: {_told(first)}",
            hint=(
                "say runtime.plugins: [FILE] for a library or a Python file that has it, or runtime.backend: onnxruntime"
                if api.plugins
                else "say runtime.backend: onnxruntime, or install TensorRT itself, which takes plugins"
            ),
        )
    if any(error.code().name == "MODEL_DESERIALIZE_FAILED" for error in found):
        return InvalidModel(f"{name} is no ONNX file, or a damaged one", hint="export it again")
    reason = "; ".join(dict.fromkeys(map(_told, found))) or errors.reason
    if missing := [text for text in errors.messages if "Failed to open file" in text]:
        reason = log.in_short(missing[0]).split(": ", 1)[-1]
        return InvalidModel(f"{name}: {reason}", hint="the file with its weights belongs beside it")
    return InvalidModel(f"{api.title} cannot read {name}: {reason[:500]}", hint="say runtime.backend: onnxruntime")


def _of_a_layer(error: Any) -> bool:  # trt.ParserError
    return bool(error.node_operator()) and error.code().name in _NO_LAYER


def _told(error: Any) -> str:  # trt.ParserError
    """Its description is at times no more than the condition that failed."""
    text = " ".join(error.desc().split())
    node = f"node {error.node()}" + (f" ({error.node_name()})" if error.node_name() else "")
    where = f"{node}: " if error.node() >= 0 else ""
    return f"{where}{text if text and text != 'false' else 'it is not supported'}"


def refuse_types(specs: Sequence[TensorSpec]) -> None:
    """Raises InvalidModel for inputs and outputs of types that TensorRT does not have, or silently makes others of."""
    for spec in specs:
        if spec.dtype not in _TYPES:
            raise InvalidModel(
                f"tensor {spec.name!r} is of type {spec.dtype}, and TensorRT takes {', '.join(_TYPES)}",
                hint="export it as one of these, or say runtime.backend: onnxruntime",
            )
