"""Whether copies and computing overlap: a context fed batch after batch against one that finishes each first, and a timeline."""

from __future__ import annotations

from typing import Any

from visionpool.errors import BackendUnavailable
from visionpool_server.backends import DeepContext, Engine, LoadOptions, Source, Tensors
from visionpool_server.backends.tensorrt.engine import TensorRtEngine
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.cuda.gpu import Gpu

from benchmarks.on_gpu.by_hand import Loop
from benchmarks.on_gpu.machine import DEVICE, Machine
from benchmarks.on_gpu.models import INPUT, picture, tensors
from benchmarks.on_gpu.pictures import RECIPES, left_to_gpu
from benchmarks.on_gpu.report import Report, failing, per_second, ratio
from benchmarks.on_gpu.resnet import plan_of
from benchmarks.on_gpu.timeline import Span, TimedDriver, merged

_SHOWN = 6  # batches of a timeline
MISSING = BackendUnavailable


def run(machine: Machine, report: Report) -> None:
    machine.driver()  # raises NoDriver
    for title, part in (
        ("by hand: three streams, two sets of buffers, the pictures' kernel", _by_hand),
        ("TensorRT", _tensorrt),
        ("ONNX Runtime", _onnxruntime),
    ):
        report.text(f"\n{title}")
        failing(lambda part=part: part(machine, report), report, MISSING)  # type: ignore[misc]


def _by_hand(machine: Machine, report: Report) -> None:
    driver = TimedDriver(machine.driver())
    gpu = Gpu(driver.as_driver(), 0)
    try:
        with gpu.current():
            recipe = RECIPES["letterbox 640"]
            photographs = [picture(machine.picture, seed) for seed in range(max(machine.pictures))]
            loop = Loop(gpu, recipe.arithmetic, left_to_gpu(recipe, photographs))
            report.check_time(2 * machine.seconds)
            one = per_second(loop.one_by_one, machine.seconds)
            pipelined = per_second(loop.pipelined, machine.seconds)
            loop.finish()
            report.table("", "batches /s")
            report.row("one by one", one)
            report.row(f"overlapped, {ratio(pipelined, one)} times that", pipelined)
            driver.begin(loop.compute.handle)
            for _ in range(_SHOWN):
                loop.pipelined()
            loop.finish()
            show(report, driver.spans())
            driver.forget()
            loop.close()
    finally:
        gpu.close()


def _tensorrt(machine: Machine, report: Report) -> None:
    api, rows = machine.api(), machine.batch[1]
    batch = {INPUT: tensors(rows)}
    driver = TimedDriver(machine.driver())
    building = machine.gpu()
    try:
        plan = plan_of(machine, api, building)
    finally:
        building.close()
    report.table(f"ResNet-50 in float32, batch {rows}", "one by one, batches /s", "overlapped", "ratio")
    for graphs in (True, False):
        options = LoadOptions(device=DEVICE, max_batch_size=rows)
        settings = TensorRtSettings(cuda_graphs=graphs)
        engine = TensorRtEngine(api, plan, options, settings, Gpu(driver.as_driver(), 0, for_libraries=True))
        try:
            _ratio(machine, report, f"CUDA graphs {'on' if graphs else 'off'}", engine, batch)
            if not graphs:
                _timeline(report, driver, engine, batch)
        finally:
            engine.close()


def _onnxruntime(machine: Machine, report: Report) -> None:
    from visionpool_server.backends.onnxruntime.engine import load_on

    provider, rows = machine.provider(), machine.batch[1]
    gpu = machine.gpu()
    try:
        engine = load_on(Source(machine.models.resnet), LoadOptions(device=DEVICE), provider, gpu)
    except BaseException:
        gpu.close()
        raise
    try:
        report.table(f"ResNet-50 in float32, batch {rows}", "one by one, batches /s", "overlapped", "ratio")
        _ratio(machine, report, "one context", engine, {INPUT: tensors(rows)})
    finally:
        engine.close()


def _ratio(machine: Machine, report: Report, title: str, engine: Engine, batch: Tensors) -> None:
    report.check_time(2 * machine.seconds)
    context = engine.clone()
    assert isinstance(context, DeepContext)
    try:
        one = per_second(lambda: context.infer(batch), machine.seconds)
        fed = Fed(context)
        overlapped = per_second(lambda: fed.step(batch), machine.seconds)
        fed.finish()
    finally:
        context.close()
    report.row(title, one, overlapped, ratio(overlapped, one))


class Fed:
    """A context as a worker feeds it: the next batch begins, then the last one's outputs are asked for."""

    def __init__(self, context: DeepContext) -> None:
        self._context = context
        self._last: Any = None

    def step(self, batch: Tensors) -> Tensors | None:
        """The outputs of the batch before."""
        pending = self._context.begin(batch)
        last, self._last = self._last, pending
        return None if last is None else last.outputs()

    def finish(self) -> Tensors | None:
        last, self._last = self._last, None
        return None if last is None else last.outputs()


def _timeline(report: Report, driver: TimedDriver, engine: TensorRtEngine, batch: Tensors) -> None:
    context = engine.clone()
    gpu = driver_of(engine)
    try:
        fed = Fed(context)
        fed.step(batch)
        with gpu.current():
            stream = gpu.stream()
            driver.begin(stream.handle)
        for _ in range(_SHOWN):
            fed.step(batch)
        fed.finish()
        with gpu.current():
            stream.synchronize()
            show(report, driver.spans())
            driver.forget()
            stream.close()
    finally:
        context.close()


def driver_of(engine: TensorRtEngine) -> Gpu:
    return engine._gpu


def show(report: Report, spans: list[Span]) -> None:
    """A line a batch. Events stand between the calls, so what is shown is when the device did them."""
    kinds = merged(spans)
    report.text("\ntimeline, in ms: begin .. end, by events with timing on the streams themselves")
    report.table("batch", "upload", "compute", "download", "its upload began before the last one's compute ended")
    for index in range(min(map(len, kinds.values()))):
        cells = [f"{kinds[kind][index].begin:.3f} .. {kinds[kind][index].end:.3f}" for kind in kinds]
        report.row(index + 1, *cells, "" if index == 0 else "yes" if overlaps(kinds, index) else "no")


def overlaps(kinds: dict[str, list[Span]], index: int) -> bool:
    """Whether the upload of a batch began before the batch ahead of it was computed."""
    return kinds["upload"][index].begin < kinds["compute"][index - 1].end
