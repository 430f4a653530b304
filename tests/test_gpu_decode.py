"""`decode: gpu`: JPEGs decoded where the model runs, through the whole flow; answers and refusals are those of the CPU.

The driver, TensorRT and nvImageCodec are fakes; the fake codec decodes with OpenCV, so that results have to be equal. The real
library is asked too where it is installed, on the CPU. None of it has seen a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from visionpool.errors import BackendUnavailable, InvalidImage, InvalidModel, RequestError
from visionpool_server.backends.tensorrt import backend as backend_module
from visionpool_server.backends.tensorrt import deserialized, devices
from visionpool_server.building.bundle import described
from visionpool_server.cuda import jpegs as jpegs_module
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.cuda.jpegs import MOST, JpegDecoder, open_jpeg_decoder
from visionpool_server.cuda.nvimagecodec import Jpeg, NvImageCodec, find_library, ordinary_jpeg
from visionpool_server.cuda.pictures import KERNEL, PictureBatch
from visionpool_server.cuda.sources import PICTURE
from visionpool_server.imaging.decode import decode, decode_on_gpu
from visionpool_server.imaging.device_pixels import DevicePixels
from visionpool_server.imaging.recipe import Arithmetic, CenterCrop, Decoded, Letterbox, Recipe, Resize, ResizeShort
from visionpool_server.imaging.unprepared import Unprepared
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.groups import WorkerGroup
from visionpool_server.models.loader import Defaults
from visionpool_server.models.picture_input import decoding_on
from visionpool_server.models.repository import load_all, locate

from tests import tiny_models
from tests.cpu_kernels import CpuKernel, compiled_kernel, picture_spans
from tests.fake_cuda import FakeDriver
from tests.fake_nvimagecodec import FakeNvImageCodec
from tests.fake_tensorrt import FakeTensorRt
from tests.picture_files import saved, scene
from tests.test_tensorrt_serving import LABELS, assert_alike, detector_shapes, predicted, serving, write_models

PIXELS = 50_000_000


def jpeg(width: int, height: int, seed: int = 0, **options: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pixels = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    flags = [value for name, one in options.items() for value in (getattr(cv2, f"IMWRITE_JPEG_{name}"), one)]
    return bytes(cv2.imencode(".jpg", pixels, flags)[1].tobytes())


def png(width: int, height: int, seed: int = 0) -> bytes:
    return bytes(cv2.imencode(".png", decode(jpeg(width, height, seed))[..., ::-1])[1].tobytes())


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> CpuKernel:
    return compiled_kernel(tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def driver(kernel: CpuKernel) -> Iterator[FakeDriver]:
    """Whose kernel notes where it is to read memory that is nobody's any more. In the end nothing is left."""
    driver = FakeDriver(seed=5)

    def careful(grid: Any, block: Any, arguments: Sequence[np.generic]) -> None:
        staged = int(arguments[0])
        table = np.ctypeslib.as_array((ctypes.c_uint8 * (grid[2] * PICTURE.itemsize)).from_address(staged))
        for record in table.view(PICTURE):
            width, pitch = 3 * int(record["columns"]), int(record["pitch"])
            address, size = staged + int(record["pixels"]), (int(record["rows"]) - 1) * pitch + width
            if pitch != width and driver.room(address) < size:  # what is copied has no padding, what the codec made has
                driver.mistakes.append("the kernel reads pixels that are gone")
        kernel(grid, block, arguments)

    driver.kernel(KERNEL, careful, picture_spans)
    yield driver
    gc.collect()
    driver.assert_clean()


@pytest.fixture
def library(driver: FakeDriver) -> FakeNvImageCodec:
    return FakeNvImageCodec(driver)


@pytest.fixture
def decoder(driver: FakeDriver, library: FakeNvImageCodec) -> Iterator[JpegDecoder]:
    decoder = JpegDecoder(Gpu(driver, 0), NvImageCodec(library, 0))
    yield decoder
    decoder.close()


def on_gpu(decoder: JpegDecoder, data: bytes) -> DevicePixels:
    pixels = decode_on_gpu(data, decoder, max_pixels=PIXELS)
    assert isinstance(pixels, DevicePixels)
    return pixels


def seen(pixels: DevicePixels) -> NDArray[np.uint8]:
    """What lies there, which is RAM on the fake driver."""
    height, width, _ = pixels.shape
    size = (height - 1) * pixels.pitch + width * 3
    flat = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pixels.address))
    return np.lib.stride_tricks.as_strided(flat, pixels.shape, (pixels.pitch, 3, 1)).copy()


# The decoder


def test_pixels_are_there_when_it_returns(decoder: JpegDecoder) -> None:
    for seed, size in enumerate([(64, 48), (1, 1), (333, 17), (640, 480)]):
        data = jpeg(*size, seed)
        pixels = on_gpu(decoder, data)
        assert np.array_equal(seen(pixels), decode(data))
        window = pixels[0 : size[1] // 2 + 1, size[0] // 3 : size[0]]
        assert np.array_equal(seen(window), decode(data)[: size[1] // 2 + 1, size[0] // 3 :])


@pytest.mark.parametrize(
    "data",
    [
        png(40, 30),
        saved(scene("L"), "JPEG"),
        saved(scene("CMYK"), "JPEG"),
        saved(scene(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    ],
    ids=["PNG", "grey", "CMYK", "on its side"],
)
def test_what_is_no_plain_upright_jpeg_is_the_cpus(
    decoder: JpegDecoder, library: FakeNvImageCodec, data: bytes
) -> None:
    before = len(library.calls)
    pixels = decode_on_gpu(data, decoder, max_pixels=PIXELS)
    assert isinstance(pixels, np.ndarray)
    assert np.array_equal(pixels, decode(data))
    assert len(library.calls) == before


@pytest.mark.parametrize("end", [2, 100, 400, -200, -2])
def test_a_truncated_jpeg_is_refused_before_the_gpu_sees_it(
    decoder: JpegDecoder, library: FakeNvImageCodec, end: int
) -> None:
    data, before = jpeg(64, 48)[:end], len(library.calls)
    try:
        expected = decode(data)
    except InvalidImage as refusal:
        with pytest.raises(InvalidImage) as caught:
            decode_on_gpu(data, decoder, max_pixels=PIXELS)
        assert caught.value.message == refusal.message
    else:
        assert np.array_equal(np.asarray(decode_on_gpu(data, decoder, max_pixels=PIXELS)), expected)
    assert len(library.calls) == before


def test_damage_is_answered_as_the_cpu_answers_it(decoder: JpegDecoder) -> None:
    random, whole = np.random.default_rng(8), jpeg(40, 30)
    statuses = []
    for _ in range(300):
        data = bytearray(whole)
        for at in random.integers(2, len(data), 3):
            data[at] = random.integers(256)
        answers = []
        for way in (decode, lambda d: decode_on_gpu(d, decoder, max_pixels=PIXELS)):
            try:
                answers.append(tuple(way(bytes(data)).shape))
            except RequestError as error:
                answers.append((type(error), error.message))
        assert answers[0] == answers[1]
        statuses.append(answers[0])
    assert len({str(status) for status in statuses}) > 2


def test_a_jpeg_over_the_limit_is_refused_unseen(decoder: JpegDecoder, library: FakeNvImageCodec) -> None:
    before = len(library.calls)
    with pytest.raises(RequestError, match="too large"):
        decode_on_gpu(jpeg(64, 48), decoder, max_pixels=3000)
    assert len(library.calls) == before


def test_what_it_refuses_or_fails_at_is_the_cpus(
    decoder: JpegDecoder, library: FakeNvImageCodec, driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    data = jpeg(64, 48)
    library.refuses = lambda _: True
    assert np.array_equal(np.asarray(decode_on_gpu(data, decoder, max_pixels=PIXELS)), decode(data))
    library.refuses = lambda _: False
    library.error = RuntimeError("Failed to allocate memory")
    with caplog.at_level(logging.WARNING):
        assert isinstance(decode_on_gpu(data, decoder, max_pixels=PIXELS), np.ndarray)
    assert "the CPU decodes: Failed to allocate memory" in caplog.text
    library.error = None
    driver.fail("synchronize")
    assert isinstance(decode_on_gpu(data, decoder, max_pixels=PIXELS), np.ndarray)
    assert np.array_equal(seen(on_gpu(decoder, data)), decode(data))
    assert decoder._held == 0


def test_threads_that_come_meanwhile_share_the_next_call(decoder: JpegDecoder, library: FakeNvImageCodec) -> None:
    asked = [jpeg(30 + seed, 20 + seed, seed) for seed in range(24)]
    library.calls.clear()
    arrived = threading.Semaphore(0)

    def wait() -> None:
        library.between = lambda: None
        for _ in asked:
            arrived.acquire()
        while len(decoder._waiting) < len(asked) - 1:
            threading.Event().wait(0.001)

    def ask(data: bytes) -> NDArray[np.uint8]:
        arrived.release()
        return seen(on_gpu(decoder, data))

    library.between = wait
    with ThreadPoolExecutor(len(asked)) as many:
        for data, pixels in zip(asked, many.map(ask, asked), strict=True):
            assert np.array_equal(pixels, decode(data))
    assert library.calls == [1, MOST, len(asked) - 1 - MOST]


def test_no_more_is_held_than_there_is_room_for(driver: FakeDriver, library: FakeNvImageCodec) -> None:
    data = jpeg(64, 48)
    decoder = JpegDecoder(Gpu(driver, 0), NvImageCodec(library, 0), most_bytes=2 * 64 * 48 * 3)
    held = [on_gpu(decoder, data), on_gpu(decoder, data)]
    assert isinstance(decode_on_gpu(data, decoder, max_pixels=PIXELS), np.ndarray)
    window = held.pop()[0:10, 0:10]
    assert isinstance(decode_on_gpu(data, decoder, max_pixels=PIXELS), np.ndarray)  # a part of it is held
    del window
    held.append(on_gpu(decoder, data))
    decoder.close()
    decoder.close()
    assert isinstance(decode_on_gpu(data, decoder, max_pixels=PIXELS), np.ndarray)
    for pixels in held:
        assert np.array_equal(seen(pixels), decode(data))  # closed, and still there
    assert driver.held()["stream"] == 1
    held.clear()
    del pixels
    assert not driver.held()


def test_a_gpu_that_hangs_is_left_alone_until_it_is_back(
    decoder: JpegDecoder, library: FakeNvImageCodec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jpegs_module, "PATIENCE_S", 0.01)
    data, hangs, back = jpeg(64, 48), threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        back.wait()

    library.between = hang
    with ThreadPoolExecutor(1) as one:
        hanging = one.submit(on_gpu, decoder, data)
        hangs.wait()
        for _ in range(2):  # waits, and then does not
            assert isinstance(decode_on_gpu(data, decoder, max_pixels=PIXELS), np.ndarray)
        assert caplog.text.count("has not decoded") == 1
        decoder.close()  # does not wait for ever
        back.set()
        assert np.array_equal(seen(hanging.result()), decode(data))
    del hanging
    assert decoder._held == 0
    library.between = lambda: None
    assert np.array_equal(seen(on_gpu(decoder, data)), decode(data))


@pytest.mark.parametrize("refused", [True, False])
def test_room_of_a_picture_nobody_waits_for_is_given_back(
    decoder: JpegDecoder, library: FakeNvImageCodec, refused: bool
) -> None:
    asked = jpegs_module._Asked(ordinary_jpeg())
    decoder._held += asked.jpeg.size
    decoder._give_up(asked)  # while a call has it
    library.refuses = lambda _: refused
    decoder._decode([asked])
    assert decoder._held == (0 if refused else asked.jpeg.size)
    del asked
    assert decoder._held == 0


# What is missing


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("visionpool_server.cuda.nvimagecodec.import_module", absent)
    with pytest.raises(BackendUnavailable, match="nvImageCodec") as caught:
        find_library()
    assert "cuda-jpeg" in str(caught.value.hint) and "decode: exact" in str(caught.value.hint)


def test_a_library_without_nvjpeg_is_found_out_at_the_start(
    driver: FakeDriver, library: FakeNvImageCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpegs_module, "find_library", lambda: library)
    monkeypatch.setattr(jpegs_module, "open_driver", lambda: driver)
    library.refuses = lambda _: True
    with pytest.raises(BackendUnavailable, match="decodes no JPEG on cuda:0: nvJPEG is missing"):
        open_jpeg_decoder(0)
    library.refuses, library.error = lambda _: False, RuntimeError("CUDA Runtime failure #100")
    with pytest.raises(BackendUnavailable, match="failure #100"):
        open_jpeg_decoder(0)
    gc.collect()
    driver.assert_clean()


@pytest.mark.parametrize("call", ["retain", "create_stream", "synchronize", "enqueue", "allocate"])
def test_a_start_that_fails_leaves_nothing(
    driver: FakeDriver, library: FakeNvImageCodec, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(jpegs_module, "find_library", lambda: library)
    monkeypatch.setattr(jpegs_module, "open_driver", lambda: driver)
    driver.fail(call)
    with pytest.raises((BackendUnavailable, RuntimeError)):
        open_jpeg_decoder(0)
    gc.collect()
    driver.assert_clean()


# model.yaml


def group(device: str, backend: str = "tensorrt") -> WorkerGroup:
    return WorkerGroup(backend, device)


def test_it_goes_with_one_gpu_that_prepares() -> None:
    said = Bundle.model_validate({"decode": "gpu", "runtime": {"prepare_on": "gpu"}})
    assert decoding_on(said, [group("cuda:1"), group("cuda:1", "onnxruntime")]) == 1
    assert decoding_on(Bundle(), [group("CPU")]) is None
    with pytest.raises(InvalidModel, match=r"one GPU.*cuda:0, cuda:1"):
        decoding_on(said, [group("cuda:0"), group("cuda:1")])
    with pytest.raises(InvalidModel, match="resized by the CPU") as caught:
        decoding_on(Bundle.model_validate({"decode": "gpu"}), [group("cuda:0")])
    assert "runtime.prepare_on: gpu" in str(caught.value.hint)


@pytest.mark.parametrize(("backend", "decodes"), [("tensorrt", "gpu"), ("openvino", None)])
def test_what_is_built_for_another_runtime_does_without(backend: str, decodes: str | None) -> None:
    said = {"decode": "gpu", "runtime": {"prepare_on": "gpu", "backend": "tensorrt"}}
    model = SimpleNamespace(task="detection", family=None, bundle=Bundle.model_validate(said))
    subject: Any = SimpleNamespace(model=model, files=SimpleNamespace(folder=Path()))
    content = described(subject, "model.bin", backend=backend, precision="f32")
    assert content.get("decode") == decodes
    assert content["runtime"].get("prepare_on") == decodes


# Batches


RECIPES = {
    "letterbox": Recipe((Letterbox((64, 64)),)),
    "resize": Recipe((Resize((40, 56)),)),
    "crop": Recipe((ResizeShort(70), CenterCrop((64, 64)))),
    "window": Recipe((CenterCrop((64, 64)),)),
}


def left_to_gpu(recipe: Recipe, pixels: Decoded) -> Unprepared:
    prepared: Any = recipe.on_gpu().prepare(pixels)[0]
    picture: Unprepared = prepared[()]
    return picture


@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_of_both_is_what_the_cpu_prepares(driver: FakeDriver, decoder: JpegDecoder, name: str) -> None:
    recipe = RECIPES[name]
    files = [jpeg(100, 80, 1), png(33, 90, 2), jpeg(64, 64, 3), jpeg(900, 700, 4), png(640, 480, 5), jpeg(20, 300, 6)]
    arithmetic = Arithmetic(1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bgr")
    gpu = Gpu(driver, 0)
    with gpu.current():
        batch, stream = PictureBatch(gpu, arithmetic, "NCHW", "float32"), gpu.stream()
        for _ in range(2):
            prepared = [left_to_gpu(recipe, decode_on_gpu(data, decoder, max_pixels=PIXELS)) for data in files]
            assert sum(isinstance(one.pixels, DevicePixels) for one in prepared) == 4
            shape = batch.load(np.array(prepared, object))
            prepared.clear()  # the batch holds what it reads
            gc.collect()
            target, host = gpu.buffer(4 * int(np.prod(shape))), gpu.pinned(4 * int(np.prod(shape)))
            batch.upload(stream)
            batch.run(target.address, stream)
            target.download(host, target.size, stream)
            stream.synchronize()
            tensor = host.bytes.view(np.float32).reshape(shape).copy()
            expected = np.stack([recipe.prepare(decode(data))[0] for data in files])
            assert np.array_equal(tensor, arithmetic.apply(expected, "NCHW", np.dtype(np.float32)))
            assert decoder._held > 0
            target.close()
            host.close()
        batch.close()
        stream.close()
    gpu.close()
    assert decoder._held == 0


def test_a_batch_that_let_go_too_early_would_be_noticed(driver: FakeDriver, decoder: JpegDecoder) -> None:
    gpu = Gpu(driver, 0)
    with gpu.current():
        batch, stream, target = (
            PictureBatch(gpu, Arithmetic(), "NCHW", "float32"),
            gpu.stream(),
            gpu.buffer(64 * 64 * 12),
        )
        pixels = on_gpu(decoder, jpeg(64, 64))
        batch.load(Unprepared.of(pixels).as_tensor().reshape(1))
        del pixels
        batch._resident = []
        batch.upload(stream)
        batch.run(target.address, stream)
        stream.synchronize()
        batch.close()
    gpu.close()
    assert driver.mistakes == ["the kernel reads pixels that are gone"]
    driver.mistakes.clear()


# The whole flow


@pytest.fixture
def fakes(driver: FakeDriver, library: FakeNvImageCodec, monkeypatch: pytest.MonkeyPatch) -> FakeNvImageCodec:
    trt = FakeTensorRt(driver)
    for module in (devices, jpegs_module):
        monkeypatch.setattr(module, "open_driver", lambda: driver)
    for module in (backend_module, deserialized):
        monkeypatch.setattr(module, "find_api", lambda prefer=None: trt.api())
    monkeypatch.setattr(jpegs_module, "find_library", lambda: library)
    return library


@pytest.fixture
def models(tmp_path: Path) -> Path:
    onnx = tiny_models.yolov5(tmp_path / "made" / "model.onnx")
    said = {"family": "yolov5", "labels": LABELS, "runtime": {"prepare_on": "gpu"}}
    write_models(tmp_path / "models", onnx, detector_shapes(), **said)
    config = tmp_path / "models/gpu/model.yaml"
    config.write_text(config.read_text() + "decode: gpu\n")
    return tmp_path / "models"


def test_a_server_answers_as_with_the_cpu(fakes: FakeNvImageCodec, models: Path) -> None:
    sizes = [(64, 64), (100, 50), (33, 97), (640, 480), (31, 15), (200, 200)]
    asked = [make(*size, seed) for seed in range(4) for size in sizes for make in (jpeg, png)]
    with serving(models) as url, ThreadPoolExecutor(12) as many:
        answers = list(many.map(lambda data: predicted(url, "gpu", data, score_threshold=0.1), asked))
        found = 0
        for data, answer in zip(asked, answers, strict=True):
            wanted = predicted(url, "cpu", data, score_threshold=0.1)
            found += len(wanted[0]["boxes"])
            assert_alike(answer, wanted)
        assert found > len(asked)
        assert sum(fakes.calls) == 1 + len(asked) // 2  # the first at the start
        fakes.error = RuntimeError("the GPU has no memory left")
        data = jpeg(77, 55)
        assert_alike(predicted(url, "gpu", data), predicted(url, "cpu", data))
    fakes.driver.assert_no_mistakes()


def test_a_picture_that_only_the_cpu_can_prepare_is_decoded_there(fakes: FakeNvImageCodec, models: Path) -> None:
    for name in ("gpu", "cpu"):
        config = models / name / "model.yaml"
        config.write_text(config.read_text() + "preprocess: [{limit_long: 5000}, {resize: [64, 64]}]\n")
    large = cv2.resize(decode(jpeg(50, 200)), (1500, 6000))  # so large that it is resized twice
    data = cv2.imencode(".jpg", large)[1].tobytes()
    with serving(models) as url:
        wanted = predicted(url, "cpu", data, score_threshold=0.1)
        assert_alike(predicted(url, "gpu", data, score_threshold=0.1), wanted)
        assert wanted[0]["boxes"]
        assert sum(fakes.calls) == 2
    fakes.driver.assert_no_mistakes()


def test_hostile_pictures_are_answered_as_with_the_cpu(fakes: FakeNvImageCodec, models: Path) -> None:
    whole = jpeg(64, 48)
    frame = whole.index(b"\xff\xc0")
    hostile = {
        "nothing": b"",
        "the start alone": whole[:2],
        "half": whole[: len(whole) // 2],
        "no end marker": whole[:-2],
        "no tables": whole[:frame].split(b"\xff\xdb")[0] + whole[frame:],
        "a bomb": whole[: frame + 5] + b"\xff\xff\xff\xff" + whole[frame + 9 :],
        "a height of 0": whole[: frame + 5] + b"\0\0" + whole[frame + 7 :],
        "12 bits": whole[: frame + 4] + b"\x0c" + whole[frame + 5 :],
        "more behind the end": whole + b"\0" * 5000,
        "the scan cut, and an end": whole[: len(whole) * 2 // 3] + b"\xff\xd9",
        "a line of text": b"\xff\xd8 is how a JPEG begins",
    }
    statuses = set()
    with serving(models) as url:
        for name, data in hostile.items():
            answers = [posted(url, model, data) for model in ("gpu", "cpu")]
            statuses.add(answers[0][0])
            assert answers[0] == answers[1], name
    assert statuses == {200, 413, 415, 422}
    fakes.driver.assert_no_mistakes()


def posted(url: str, model: str, data: bytes) -> tuple[int, str]:
    """Status and, of refusals, the message."""
    answer = httpx.post(f"{url}/v1/models/{model}/predict", files={"image": ("p", data)}, timeout=60)
    return answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]["message"]


def test_a_model_that_cannot_have_it_is_not_loaded(
    fakes: FakeNvImageCodec, models: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise BackendUnavailable("nvImageCodec is not there")

    monkeypatch.setattr(jpegs_module, "find_library", absent)
    with pytest.raises(BackendUnavailable, match="gpu: nvImageCodec is not there"):
        for _ in load_all([one for one in locate([models]) if one.name == "gpu"], Defaults()):
            pass
    gc.collect()
    driver.assert_clean()


# The real library, on the CPU


@pytest.fixture(scope="module")
def real() -> NvImageCodec:
    try:
        library = find_library()
    except BackendUnavailable as missing:
        pytest.skip(str(missing))
    return NvImageCodec(library, None)


def real_pixels(codec: NvImageCodec, data: bytes) -> NDArray[np.uint8] | None:
    header = decode(data).shape
    (decoded,) = codec.decode([Jpeg(np.frombuffer(data, np.uint8), header[0], header[1])], 0)
    return (
        None if decoded is None else seen(DevicePixels(decoded.address, (*header[:2], 3), decoded.pitch, decoded.image))
    )


def test_the_library_decodes_what_opencv_decodes(real: NvImageCodec) -> None:
    for seed, options in enumerate([{}, {"PROGRESSIVE": 1}, {"SAMPLING_FACTOR": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444}]):
        data = jpeg(101, 67, seed, **options)
        pixels = real_pixels(real, data)
        assert pixels is not None
        assert np.array_equal(pixels, decode(data))


def test_the_library_decodes_batches_with_bad_ones_among_them(real: NvImageCodec) -> None:
    good, half = jpeg(64, 48), jpeg(64, 48)[:900]
    asked = [Jpeg(np.frombuffer(data, np.uint8), *size) for data, size in
             [(good, (48, 64)), (half, (48, 64)), (b"junk" * 40, (48, 64)), (good, (64, 48)), (good, (48, 64))]]  # fmt: skip
    first, *others, last = real.decode(asked, 0)
    assert first and last and others == [None] * 3
    for decoded in (first, last):
        assert np.array_equal(
            seen(DevicePixels(decoded.address, (48, 64, 3), decoded.pitch, decoded.image)), decode(good)
        )
    assert real.decode([ordinary_jpeg()], 0)[0] is not None


def test_the_library_leaves_pictures_as_they_lie(real: NvImageCodec) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    turned, plain = saved(scene(), "JPEG", exif=exif), saved(scene(), "JPEG")
    assert np.array_equal(decode(turned), decode(plain)[::-1, ::-1])
    pixels = real_pixels(real, turned)
    assert pixels is not None and np.array_equal(pixels, decode(plain))


@pytest.mark.skipif(
    "not __import__('ctypes.util').util.find_library('cuda') is None", reason="an NVIDIA driver is here"
)
def test_the_library_without_a_gpu_is_named(real: NvImageCodec) -> None:
    with pytest.raises(BackendUnavailable, match="does not start on cuda:0"):
        NvImageCodec(find_library(), 0)
