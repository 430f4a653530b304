"""Reading a file, and loading it: batches planned, shapes fixed, compiled, and run once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import openvino as ov
from visionpool.errors import InvalidModel

from visionpool_server.backends import LoadOptions, Signature, Source, Tensors, refuse_unknown_types
from visionpool_server.backends.openvino.context import Compiled
from visionpool_server.backends.openvino.devices import ONE_THREAD, check_device, compile_model, place
from visionpool_server.backends.openvino.dynamic import compiled_for, how_to_fix, is_dynamic, with_guesses
from visionpool_server.backends.openvino.engine import OpenVinoEngine, placement
from visionpool_server.backends.openvino.files import Names, read_model, signature_of
from visionpool_server.backends.openvino.first_run import QUICK, run_once, seconds
from visionpool_server.backends.openvino.quantization import check_precision
from visionpool_server.backends.openvino.shape_cache import ShapeCache
from visionpool_server.backends.openvino.shapes import Plan, first_dimension, plan, shaped
from visionpool_server.backends.openvino.work import follows_from_shapes


class OpenVinoBackend:
    def read(self, source: Source) -> Signature:
        """The signature of an ONNX, IR, Paddle, TensorFlow or TFLite file. Raises InvalidModel."""
        return signature_of(read_model(source.weights))

    def load(self, source: Source, options: LoadOptions) -> OpenVinoEngine:
        check_device(options.device)
        model = read_model(source.weights)
        check_precision(model, source.weights, options.precision)
        if options.image is None:
            _refuse_types(signature_of(model))
        names = Names.of(model)
        planned = plan(model, names, options)
        models = {
            size: shaped(model.clone(), names, first_dimension(size, planned, options), options)
            for size in planned.sizes or (None,)
        }
        engine = _engine(model, models, planned, names, options)
        example = run_once(engine, options, planned)
        if example and options.device == "CPU" and not options.options.keys() & ONE_THREAD:
            _take_inline(engine, models, options, example)
        return engine


def _engine(
    model: ov.Model, models: Mapping[int | None, ov.Model], planned: Plan, names: Names, options: LoadOptions
) -> OpenVinoEngine:
    """`models`: of each batch size. Where inputs stay dynamic and the device is not the CPU, they are examples: what comes is
    compiled in its own shape."""
    shapes, advice = None, None
    if any(map(is_dynamic, models.values())):
        if options.device == "CPU":
            shapes = ShapeCache(options.max_shapes)
        else:
            shapes = ShapeCache(options.max_shapes, lambda shape: compiled_for(model, names, shape, options))
            advice = how_to_fix(model, next(iter(models.values())), names, options)
            models = {size: with_guesses(each.clone(), names, options) for size, each in models.items()}
    placed = [place(each, options) for each in models.values()]
    compiled = {size: compile_model(each, options) for size, each in models.items()}
    if shapes and advice:
        for each in compiled.values():
            shapes.put(each)
    placed_on = placement(next(iter(compiled.values())), options, placed[0])
    placed_on = replace(placed_on, advice=advice, memory_bytes=_weight_bytes(model))
    return OpenVinoEngine(Compiled(compiled, shapes=shapes), planned, names, options, placed_on)


def _weight_bytes(model: ov.Model) -> int:
    """Of the constants as the file has them; models of several batch sizes share them."""
    return sum(node.get_byte_size() for node in model.get_ops() if isinstance(node, ov.op.Constant))


def _take_inline(
    engine: OpenVinoEngine, models: Mapping[int | None, ov.Model], options: LoadOptions, example: Tensors
) -> None:
    """Compiles a very small model for one thread as well, if that pays: see `Compiled`.

    What takes long for other values than the example's is no such model: the thread that asks may be the event loop's.
    """
    if seconds(engine, example) > 4 * QUICK or not all(map(follows_from_shapes, models.values())):
        return
    compiled = {size: compile_model(model, options, ONE_THREAD) for size, model in models.items()}
    engine.add_inline(compiled, 4 * sum(array.nbytes for array in example.values()))
    if seconds(engine, example) > QUICK:
        engine.add_inline({}, 0)


def _refuse_types(signature: Signature) -> None:
    refuse_unknown_types(signature)
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype == "bytes":
            raise InvalidModel(
                f"tensor {spec.name!r} holds strings, which OpenVINO does not copy safely",
                hint="say runtime.backend: onnxruntime in model.yaml",
            )
