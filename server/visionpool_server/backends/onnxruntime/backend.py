"""Opening a file, and loading it: a session for its device, run once."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from visionpool.errors import InvalidModel

from visionpool_server.backends import (
    LoadOptions,
    Placement,
    Signature,
    Source,
    Tensors,
    ones,
    refuse_unknown_types,
    zeros,
)
from visionpool_server.backends.onnxruntime.batches import batching
from visionpool_server.backends.onnxruntime.context import OnnxRuntimeContext
from visionpool_server.backends.onnxruntime.endings import endings
from visionpool_server.backends.onnxruntime.session import (
    inputs_of,
    known_shape,
    open_session,
    outputs_of,
    providers_for,
    reason,
    size_or,
    spec_of,
)
from visionpool_server.cpu import cpu_count


class OnnxRuntimeBackend:
    def read(self, source: Source) -> Signature:
        settings = ort.SessionOptions()
        settings.log_severity_level = 4  # what fails here is tried again, or reported, elsewhere
        session = open_session(source.weights, settings, ["CPUExecutionProvider"])
        outputs = outputs_of(session)
        known = endings(source.weights, [spec.name for spec in outputs]) if source.weights else {}
        return Signature(inputs_of(session), outputs, dict(session.get_modelmeta().custom_metadata_map), known)

    def load(self, source: Source, options: LoadOptions) -> OnnxRuntimeEngine:
        _refuse_what_it_lacks(options)
        providers = providers_for(options.device)
        contexts = options.contexts or cpu_count()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = max(1, cpu_count() // contexts)
        settings.log_severity_level = 3  # its warnings are about its own graph rewriting
        for key, value in options.options.items():
            settings.add_session_config_entry(key, str(value))
        session = open_session(source.weights, settings, providers)
        if _is_dynamic(session, options):
            settings.enable_mem_pattern = False  # one is kept for each shape that comes: memory would grow with them
            session = open_session(source.weights, settings, providers)
        if options.image is None:
            _refuse_what_it_cannot_send(session)
        engine = OnnxRuntimeEngine(session, options, contexts)
        _run_once(engine, options)
        return engine


def _is_dynamic(session: ort.InferenceSession, options: LoadOptions) -> bool:
    """Whether other dimensions than the batch may differ from one inference to the next."""
    sized = options.image.name if options.image and options.image.size else None
    return any(None in known_shape(spec, options)[1:] for spec in inputs_of(session) if spec.name != sized)


def _run_once(engine: OnnxRuntimeEngine, options: LoadOptions) -> None:
    """Runs zeros. A plain model with dynamic dimensions may refuse those of guessed sizes for good reasons."""
    example = engine.example()
    try:
        engine.clone().infer(example)
    except Exception as error:  # its exceptions have no base class of their own
        if options.image is None and engine.dynamic:
            return
        raise InvalidModel(
            f"the model loads, but fails on {'a black picture' if options.image else 'zeros'}: {reason(error)}",
            hint="check runtime.shapes and preprocess in model.yaml",
        ) from error


class OnnxRuntimeEngine:
    def __init__(self, session: ort.InferenceSession, options: LoadOptions, contexts: int) -> None:
        self._session = session
        self._options = options
        self._inputs = inputs_of(session)
        self.contexts = contexts
        self.quick_bytes = 0
        self.on_cpu = options.device == "CPU"
        self.batched, self.batch_sizes, self.max_batch_size = batching(session, options)
        self._placement = Placement(
            "onnxruntime", session.get_providers()[0].removesuffix("ExecutionProvider"), "as in the file"
        )

    def clone(self) -> OnnxRuntimeContext:
        return OnnxRuntimeContext(self._session, self._options)

    @property
    def dynamic(self) -> bool:
        """Whether `example` has to guess at dimensions."""
        return any(None in (spec.shape or ()) for spec in self._inputs)

    def example(self) -> Tensors:
        """Zeros that the engine takes, and ones beside a picture: of pictures, the smallest batch."""
        tensors, count = {}, (self.batch_sizes or (1,))[0]
        for spec in self._inputs:
            image, known = self._options.image, known_shape(spec, self._options)
            if image and image.name == spec.name:
                rows = 2 if image.layout == "NCHW" else 1
                height, width = image.size or (known[rows] or 32, known[rows + 1] or 32)
                channels = len(image.arithmetic.mean)
                tensors[spec.name] = np.zeros((count, height, width, channels), np.uint8)
            else:
                shape = [size_or(size, 1) for size in known]
                tensors[spec.name] = ones([count, *shape[1:]], spec.dtype) if image else zeros(shape, spec.dtype)
        return tensors

    def describe(self) -> Placement:
        return self._placement

    def shape_use(self) -> None:
        """Nothing is kept for each shape."""

    def close(self) -> None:
        """Contexts in use keep the session until they end."""
        self._session = None


def _refuse_what_it_cannot_send(session: ort.InferenceSession) -> None:
    signature = Signature(inputs_of(session), tuple(map(spec_of, session.get_outputs())))
    refuse_unknown_types(signature)
    if {"bytes", "bfloat16"} <= {spec.dtype for spec in (*signature.inputs, *signature.outputs)}:
        raise InvalidModel(
            "ONNX Runtime cannot take strings and bfloat16 in one model from Python",
            hint="say runtime.backend: openvino, or cast the bfloat16 tensors in the export",
        )


def _refuse_what_it_lacks(options: LoadOptions) -> None:
    if options.cpu_operators:
        raise InvalidModel("cpu_operators is OpenVINO's", hint="say runtime.backend: openvino, or leave it out")
    if options.precision not in (None, "f32"):
        raise InvalidModel(
            f"the onnxruntime backend runs the file's own precision, not {options.precision}",
            hint="export the model in that precision, or say runtime.backend: openvino",
        )
