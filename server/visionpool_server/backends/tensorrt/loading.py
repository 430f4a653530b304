"""From weights to an engine on a GPU: a plan as it is, an ONNX file by the plan that is kept of it, or by one built now."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from visionpool_server.backends import LoadOptions, Precision, Signature
from visionpool_server.backends.onnx_file import OnnxFile, read_onnx
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.builder import build_plan
from visionpool_server.backends.tensorrt.devices import open_gpu, properties_of
from visionpool_server.backends.tensorrt.engine import TensorRtEngine
from visionpool_server.backends.tensorrt.messages import FASTER, UnusablePlan, unsupported_gpu
from visionpool_server.backends.tensorrt.plan_cache import PlanCache, cache_folder, plan_name, timings_name
from visionpool_server.backends.tensorrt.profiles import Profile, profiles_of
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.cuda.driver import Properties

log = logging.getLogger(__name__)

_SPECIAL = (7, 5)  # TensorRT-RTX leaves it out unless it is asked for


@dataclass(frozen=True, slots=True)
class Loading:
    """Opens the GPU anew for each try: an engine that cannot be made closes it."""

    api: Api
    options: LoadOptions
    settings: TensorRtSettings

    @property
    def precision(self) -> Precision | None:
        return self.options.precision

    def from_plan(self, path: Path, plan: bytes) -> TensorRtEngine:
        """Raises BackendUnavailable for a plan of another TensorRT or GPU, without an ONNX file of its name beside it."""
        try:
            return self._engine(plan)
        except UnusablePlan as error:
            onnx = path.with_suffix(".onnx")
            if not onnx.is_file():
                raise UnusablePlan(f"{path.name}: {error.message}", hint=error.hint) from error
            log.warning("%s: %s; an engine is built of %s instead", path.name, error.message, onnx.name)
            return self.from_onnx(onnx)

    def from_onnx(self, path: Path) -> TensorRtEngine:
        """Raises InvalidModel, BackendUnavailable."""
        file = read_onnx(path)
        profiles = profiles_of(file.inputs, self.options).each
        gpu = properties_of(self.options.device)
        return self._kept_or_built(path, file, profiles, self._for(gpu), gpu)

    def _kept_or_built(
        self, path: Path, file: OnnxFile, profiles: tuple[Profile, ...], settings: TensorRtSettings, gpu: Properties
    ) -> TensorRtEngine:
        options = self.options
        folder = cache_folder(options.cache_dir)
        cache = PlanCache(path.parent, folder)
        name = plan_name(
            *(self.api, path, gpu, profiles, settings),
            precision=self.precision,
            external=file.external,
            plugins=options.plugins,
        )
        if kept := cache.find(name):
            try:
                return self._engine(kept.plan, self._advice(file))
            except UnusablePlan as error:
                log.warning("%s is built anew: %s", name, error.message)
        plan = self._built(path, profiles, settings, timings_of(settings, folder, self.api, gpu))
        cache.keep(name, plan, signature_of(file))
        return self._engine(plan, self._advice(file))

    def _for(self, gpu: Properties) -> TensorRtSettings:
        """The settings, with what follows from the GPU. Raises BackendUnavailable for one that the library does not know."""
        self.settings.check(self.api)
        targets = self.api.targets()
        if not targets or self.settings.current:
            return self.settings
        if gpu.capability not in targets:
            raise unsupported_gpu(self.api, gpu.capability, gpu.name)
        if gpu.capability == _SPECIAL and not self.settings.compute_capability:
            return self.settings.model_copy(update={"compute_capability": ("7.5",)})
        return self.settings

    def _built(
        self, path: Path, profiles: tuple[Profile, ...], settings: TensorRtSettings, timings: Path | None
    ) -> bytes:
        log.info("%s builds an engine of %s, once, which may take minutes", self.api.title, path.name)
        gpu, options = open_gpu(self.options.device), self.options
        try:
            with gpu.current():
                return build_plan(
                    *(self.api, path, profiles, settings),
                    precision=self.precision,
                    plugins=options.plugins,
                    timings=timings,
                )
        finally:
            gpu.close()

    def _engine(self, plan: bytes, advice: str | None = None) -> TensorRtEngine:
        gpu = open_gpu(self.options.device)
        return TensorRtEngine(self.api, plan, self.options, self.settings, gpu, advice=advice)

    def _advice(self, file: OnnxFile) -> str | None:
        """For what computes in full float32."""
        full = self.precision in (None, "f32") and not self.settings.tf32
        return FASTER if full and not file.quantized and "float16" not in file.element_types else None


def timings_of(settings: TensorRtSettings, folder: Path | None, api: Api, gpu: Properties) -> Path | None:
    """The file with what the builder has measured; None where nothing is to be kept."""
    if isinstance(settings.timing_cache, Path):
        return settings.timing_cache
    return folder / timings_name(api, gpu) if settings.timing_cache and folder else None


def signature_of(file: OnnxFile) -> Signature:
    return Signature(file.inputs, file.outputs, file.metadata, file.endings)
