"""Opening a file to see what it holds, and to serve it: what cannot be done is refused first."""

from __future__ import annotations

import onnxruntime as ort
from visionpool.errors import InvalidModel

from visionpool_server.backends import LoadOptions, Signature, Source
from visionpool_server.backends.onnxruntime.device import open_gpu
from visionpool_server.backends.onnxruntime.endings import endings
from visionpool_server.backends.onnxruntime.engine import OnnxRuntimeEngine, load_on
from visionpool_server.backends.onnxruntime.provider import Provider, provider_for
from visionpool_server.backends.onnxruntime.session import inputs_of, open_session, outputs_of


class OnnxRuntimeBackend:
    def read(self, source: Source) -> Signature:
        settings = ort.SessionOptions()
        settings.log_severity_level = 4  # what fails here is tried again, or reported, elsewhere
        session = open_session(source.weights, settings, Provider())
        outputs = outputs_of(session)
        known = endings(source.weights, [spec.name for spec in outputs]) if source.weights else {}
        return Signature(inputs_of(session), outputs, dict(session.get_modelmeta().custom_metadata_map), known)

    def load(self, source: Source, options: LoadOptions) -> OnnxRuntimeEngine:
        _refuse_what_it_lacks(options)
        provider = provider_for(options.device)
        gpu = None if provider.on_cpu else open_gpu(provider.ordinal)  # first of all that touches CUDA
        try:
            return load_on(source, options, provider, gpu)
        except BaseException:
            if gpu is not None:
                gpu.close()
            raise


def _refuse_what_it_lacks(options: LoadOptions) -> None:
    if options.cpu_operators:
        raise InvalidModel("cpu_operators is OpenVINO's", hint="say runtime.backend: openvino, or leave it out")
    if options.precision not in (None, "f32"):
        raise InvalidModel(
            f"the onnxruntime backend runs the file's own precision, not {options.precision}",
            hint="export the model in that precision, as `visionpool build --backend tensorrt --precision f16` does "
            "(its model.onnx runs here), or say runtime.backend: openvino",
        )
