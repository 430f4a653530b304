"""Reading an ONNX file or a plan, and loading it onto a GPU: CUDA's devices first, then TensorRT, then the engine, run once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from visionpool.errors import BackendUnavailable, InvalidModel, InvalidRequest, SetupError, VisionpoolError

from visionpool_server.backends import LoadOptions, Signature, Source, TensorSpec
from visionpool_server.backends.onnx_file import read_onnx
from visionpool_server.backends.tensorrt.api import find_api
from visionpool_server.backends.tensorrt.deserialized import asked
from visionpool_server.backends.tensorrt.devices import driver_of, ordinal_of
from visionpool_server.backends.tensorrt.engine import TensorRtEngine
from visionpool_server.backends.tensorrt.loading import Loading, signature_of
from visionpool_server.backends.tensorrt.network import parsed
from visionpool_server.backends.tensorrt.plans import SUFFIXES, library_of, read_plan
from visionpool_server.backends.tensorrt.plugins import load_plugins
from visionpool_server.backends.tensorrt.settings import read_settings
from visionpool_server.cuda.errors import CudaError, OutOfMemory


class TensorRtBackend:
    def read(self, source: Source) -> Signature:
        """Of an ONNX file, and of a plan that says its tensors, without a GPU. Raises InvalidModel, BackendUnavailable."""
        path = _weights(source)
        if path.suffix in SUFFIXES:
            file = read_plan(path)
            return file.signature or asked(file)
        signature = signature_of(read_onnx(path))
        return replace(signature, outputs=_outputs(path, signature.outputs))

    def load(self, source: Source, options: LoadOptions) -> TensorRtEngine:
        """Raises InvalidModel, BackendUnavailable."""
        path = _weights(source)
        _refuse_what_it_lacks(options)
        settings = read_settings(options.options)
        driver_of(ordinal_of(options.device))  # before TensorRT, which may end the process where there is none
        file = read_plan(path) if path.suffix in SUFFIXES else None
        api = find_api(settings.library or (library_of(file) if file else None))
        load_plugins(api, options.plugins)
        loading = Loading(api, options, settings)
        try:
            engine = loading.from_plan(path, file.plan) if file else loading.from_onnx(path)
        except CudaError as error:
            raise failed(error, options.device) from error
        _run_once(engine, options)
        return engine


def _weights(source: Source) -> Path:
    path = source.weights
    if path is None or path.suffix not in (".onnx", *SUFFIXES):
        raise InvalidModel(
            f"TensorRT reads .onnx, .plan and .engine files, not {path.name if path else 'nothing'}",
            hint="export the model to ONNX (from Paddle: paddle2onnx, from TensorFlow: python -m tf2onnx.convert), or say "
            "runtime.backend: openvino",
        )
    return path


def _outputs(path: Path, declared: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """The outputs as declared, and what the file leaves open as TensorRT infers it, where it can be asked."""
    if all(spec.shape is not None and None not in spec.shape[1:] for spec in declared):
        return declared
    try:
        api = find_api()
        if not api.builds_without_gpu:
            driver_of()
        with parsed(api, path, path.name) as whole:
            inferred = whole.output_shapes()
    except (SetupError, CudaError):  # whoever loads it says what is wrong
        return declared
    return tuple(_inferred(spec, inferred.get(spec.name)) for spec in declared)


def _inferred(spec: TensorSpec, shape: tuple[int | None, ...] | None) -> TensorSpec:
    if shape is None or (spec.shape is not None and len(shape) != spec.rank):
        return spec
    own = spec.shape or (None,) * len(shape)
    return replace(
        spec, shape=tuple(size if size is not None else known for size, known in zip(own, shape, strict=True))
    )


def _refuse_what_it_lacks(options: LoadOptions) -> None:
    if options.cpu_operators:
        raise InvalidModel("cpu_operators is OpenVINO's", hint="say runtime.backend: openvino, or leave it out")


def _run_once(engine: TensorRtEngine, options: LoadOptions) -> None:
    """Runs zeros. A plain model of several shapes may refuse those that it is tuned for, together, for good reasons."""
    try:
        context = engine.clone()
        try:
            context.infer(engine.example())
        finally:
            context.close()
    except (CudaError, VisionpoolError) as error:
        if options.image is None and isinstance(error, InvalidRequest):
            return
        engine.close()
        raise failed(error, options.device) from error
    except BaseException:
        engine.close()
        raise


def failed(error: Exception, device: str) -> SetupError:
    """What is to be said of an error while a model is loaded and tried."""
    if isinstance(error, SetupError):
        return error
    if isinstance(error, OutOfMemory):
        return BackendUnavailable(
            f"{device} has not enough memory left for the model: {error}",
            hint="say fewer workers or a smaller batching.max_batch_size, or free it: nvidia-smi shows who uses it",
        )
    if isinstance(error, CudaError):
        return BackendUnavailable(f"{device} failed: {error}", hint="nvidia-smi and the kernel's log may say more")
    message = error.message if isinstance(error, VisionpoolError) else str(error)
    return InvalidModel(
        f"the engine loads, but fails on zeros: {message}", hint="check runtime.shapes and preprocess in model.yaml"
    )
