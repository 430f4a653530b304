"""TensorRT, or TensorRT-RTX: one engine for all contexts, f16 against f32, CUDA graphs, and the pool against a bare loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from visionpool_server.assembly import Assembly, Pictures, Rows
from visionpool_server.backends import ImageInput, LoadOptions, Tensors
from visionpool_server.backends.onnx_file import read_onnx
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.context import TensorRtContext
from visionpool_server.backends.tensorrt.engine import TensorRtEngine
from visionpool_server.backends.tensorrt.loading import signature_of
from visionpool_server.backends.tensorrt.plans import write_plan
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.imaging.recipe import Arithmetic
from visionpool_server.pool import Group, Pool, PoolOptions

from benchmarks.on_gpu.bare_enqueue import BareEngine, BareLoop
from benchmarks.on_gpu.busy_pool import WAITING, busy
from benchmarks.on_gpu.machine import DEVICE, Machine
from benchmarks.on_gpu.models import CLASSIFIER, INPUT, OUTPUT, SIZE, picture, served, tensors
from benchmarks.on_gpu.overlap import MISSING, Fed
from benchmarks.on_gpu.report import NotRun, Report, failing, megabytes, per_second, ratio
from benchmarks.on_gpu.resnet import plan_of
from benchmarks.on_gpu.serving import begin_table, measure, pictures_request, tensor_requests

_MOST_WORKERS = 4


def run(machine: Machine, report: Report) -> None:
    api = machine.api()  # raises BackendUnavailable, of which NoDriver is one
    report.text(f"\n{api.title}; ResNet-50 with random weights, float32 without TF32 where nothing else is said")
    bare: list[float] = []
    gpu = machine.gpu()
    try:
        plan = plan_of(machine, api, gpu, report=report)
    finally:
        gpu.close()
    parts: tuple[Callable[[], None], ...] = (
        lambda: _sharing(machine, report, api, plan),
        lambda: _accuracy(machine, report, api, plan),
        lambda: _graphs(machine, report, api, plan),
        lambda: bare.append(_against_bare(machine, report, api, plan)),
        lambda: _pool(machine, report, api, plan, bare),
        lambda: _server(machine, report, plan, bare),
    )
    for part in parts:
        failing(part, report, MISSING)


def engine_of(
    machine: Machine, api: Api, plan: bytes, *, graphs: bool = True, image: ImageInput | None = None
) -> TensorRtEngine:
    options = LoadOptions(image=image, device=DEVICE, max_batch_size=machine.batch[2])
    return TensorRtEngine(api, plan, options, TensorRtSettings(cuda_graphs=graphs), machine.gpu())


def _sharing(machine: Machine, report: Report, api: Api, plan: bytes) -> None:
    watch = machine.gpu()
    try:
        with watch.current():
            bare = BareEngine(api, watch, plan)
            activations = int(bare.engine.device_memory_size_v2)
            bare.close()
        report.text(
            f"\nthe plan has {megabytes(len(plan))}; a context computes in {megabytes(activations)}, beside its buffers"
        )
        report.text("\ndevice memory, each context having run the smallest and the largest batch")
        report.table(
            "workers", "contexts of one engine", "each further one", "engines of their own", "each further one"
        )
        shared, apart = (_taken(machine, watch.memory, api, plan, one=one) for one in (True, False))
    finally:
        watch.close()
    for count in range(_MOST_WORKERS):
        more = [(taken[count] - taken[0]) / count if count else 0 for taken in (shared, apart)]
        further = [megabytes(value) if count else "" for value in more]
        report.row(count + 1, megabytes(shared[count]), further[0], megabytes(apart[count]), further[1])


def _taken(machine: Machine, memory: Callable[[], tuple[int, int]], api: Api, plan: bytes, *, one: bool) -> list[int]:
    """Bytes of the device after each further worker, the first of which brings what CUDA and TensorRT load by themselves."""
    before, found = memory()[0], []
    engines: list[TensorRtEngine] = []
    contexts: list[TensorRtContext] = []
    try:
        for _ in range(_MOST_WORKERS):
            if not one or not engines:
                engines.append(engine_of(machine, api, plan))
            contexts.append(engines[-1].clone())
            for rows in machine.batch[::2]:
                contexts[-1].infer({INPUT: tensors(rows)})
            found.append(before - memory()[0])
    finally:
        for context in contexts:
            context.close()
        for engine in engines:
            engine.close()
    return found


def _accuracy(machine: Machine, report: Report, api: Api, plan: bytes) -> None:
    report.check_time(60)
    gpu = machine.gpu()
    try:
        half = plan_of(machine, api, gpu, "f16", report)
    finally:
        gpu.close()
    batch = tensors(machine.batch[2], seed=7)
    single, halved = (_outputs(machine, api, one, batch) for one in (plan, half))
    report.text(f"\n{len(batch)} random inputs, outputs of {single.shape[1]} numbers")
    report.table("", "largest difference, of the largest output", "same first class")
    pairs = {"f16 to f32": (halved, single)}
    if find_spec("onnxruntime"):
        exact = _exact(machine, batch)
        pairs["f32 to ONNX Runtime on the CPU"] = single, exact
        pairs["f16 to ONNX Runtime on the CPU"] = halved, exact
    for name, (ours, theirs) in pairs.items():
        worst = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        report.row(name, worst, f"{(ours.argmax(1) == theirs.argmax(1)).mean():.1%}")


def _exact(machine: Machine, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(machine.models.resnet), providers=["CPUExecutionProvider"])
    outputs: NDArray[np.float32] = session.run([OUTPUT], {INPUT: batch})[0]
    return outputs


def _outputs(machine: Machine, api: Api, plan: bytes, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    engine = engine_of(machine, api, plan)
    try:
        with closing(engine.clone()) as context:
            return np.array(context.infer({INPUT: batch})[OUTPUT])
    finally:
        engine.close()


def _graphs(machine: Machine, report: Report, api: Api, plan: bytes) -> None:
    report.text("\none context, one batch after the other: milliseconds of each, from an array to an array")
    report.table("batch", "CUDA graphs off", "on", "off to on", "same numbers")
    engines = [engine_of(machine, api, plan, graphs=graphs) for graphs in (False, True)]
    try:
        for rows in machine.batch[:2]:
            report.check_time(2 * machine.seconds)
            batch = {INPUT: tensors(rows, seed=rows)}
            took, outputs = [], []
            for engine in engines:
                with closing(engine.clone()) as context:
                    took.append(1e3 / per_second(lambda: context.infer(batch), machine.seconds, warm_up=4))  # noqa: B023  called here
                    outputs.append(np.array(context.infer(batch)[OUTPUT]))
            same = (
                "yes"
                if np.array_equal(outputs[0], outputs[1])
                else f"within {np.abs(outputs[0] - outputs[1]).max():.2g}"
            )
            report.row(rows, took[0], took[1], took[0] / took[1], same)
    finally:
        for engine in engines:
            engine.close()


def _against_bare(machine: Machine, report: Report, api: Api, plan: bytes) -> float:
    """The most pictures a second of the bare loop."""
    report.text(
        "\nthe bare loop: one thread, two contexts by turns, copies to and from pinned memory and enqueue, no CUDA graphs; ours: "
        "one context fed batch after batch, arrays copied to pinned memory as well"
    )
    report.table("batch", "bare, batches /s", "pictures /s", "ours, batches /s", "ratio")
    gpu, best = machine.gpu(), 0.0
    engine = engine_of(machine, api, plan)
    try:
        with gpu.current():
            bare = BareEngine(api, gpu, plan)
        for rows in machine.batches:
            report.check_time(2 * machine.seconds)
            batch = {INPUT: tensors(rows)}
            with gpu.current():
                loop = BareLoop(bare, batch)
                theirs = per_second(loop.step, machine.seconds, warm_up=4)
                loop.close()
            with closing(engine.clone()) as context:
                fed = Fed(context)
                ours = per_second(lambda: fed.step(batch), machine.seconds, warm_up=4)  # noqa: B023  called here
                fed.finish()
            report.row(rows, theirs, theirs * rows, ours, ratio(ours, theirs))
            best = max(best, theirs * rows)
        with gpu.current():
            bare.close()
    finally:
        engine.close()
        gpu.close()
    return best


def _pool(machine: Machine, report: Report, api: Api, plan: bytes, bare: list[float]) -> None:
    if not bare:
        raise NotRun("the bare loop did not run, of which this is a ratio")
    report.text("\nthe pool in this process, asked for single ones, as many waiting as keep it busy")
    report.table("", "workers", "pictures /s", "ratio to the best bare loop")
    image = ImageInput(INPUT, "NCHW", Arithmetic(), (SIZE, SIZE))
    one = {INPUT: np.ascontiguousarray(picture((SIZE, SIZE), 3))}
    kinds: tuple[tuple[str, ImageInput | None, Assembly, Tensors], ...] = (
        ("float32 tensors", None, Rows(), {INPUT: tensors(1)}),
        ("pictures, uint8, normalised on the GPU", image, Pictures(_apart), one),
    )
    for title, said, assembly, question in kinds:
        for workers in (1, 2):
            report.check_time(2 * machine.seconds)
            engine = engine_of(machine, api, plan, image=said)
            options = PoolOptions(max_queue_size=4 * WAITING * machine.batch[2])
            pool = Pool("bench", [Group(engine, workers)], assembly, options)
            pool.start()
            try:
                rate = busy(pool, question, machine.batch[2], machine.seconds)
            finally:
                pool.close()
                engine.close()
            report.row(title, workers, rate, ratio(rate, bare[0]))


def _apart(outputs: Tensors, count: int) -> list[Tensors]:
    return [{name: value[index : index + 1] for name, value in outputs.items()} for index in range(count)]


def _server(machine: Machine, report: Report, plan: bytes, bare: list[float]) -> None:
    onnx = machine.models.resnet
    folder = machine.models.folder / "trt" / onnx.stem
    served(
        folder, {"backend": "tensorrt", "device": DEVICE}, batching={"max_batch_size": machine.batch[2]}, **CLASSIFIER
    )
    write_plan(folder / f"{onnx.stem}.plan", plan, signature_of(read_onnx(onnx)))
    report.text("\nthe server, in a process of its own, asked by others on the same machine")
    report.check_time(30)
    with machine.serve(folder) as server:
        begin_table(report, "the best bare loop")
        measure(machine, report, server, pictures_request(machine, onnx.stem), sum(bare[:1]))
        measure(machine, report, server, tensor_requests(machine, onnx.stem), sum(bare[:1]))
