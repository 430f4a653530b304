"""Vision models over KServe v2: pictures in as they are, results or the model's own tensors out.

Results are held against those of /v1/models/M/predict for the same picture; tensors against what a picture gives that is prepared
by hand, with NumPy and OpenCV alone, and run by ONNX Runtime.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from numpy.typing import NDArray
from onnx import TensorProto
from tritonclient.utils import serialize_byte_tensor
from visionpool_server.app import DEMO_MODELS

from tests import tiny_models
from tests.kserve_models import (
    PATIENCE,
    Array,
    Ask,
    Refused,
    Told,
    Way,
    assert_same,
    onnx_runtime,
    ways_to,
    weights,
    write_yaml,
)
from tests.real_server import Server, serving
from tests.tiny_models import SIZE

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
WITH_PICTURES = ("http-binary", "http-async", "grpc-raw", "grpc-async", "grpc-typed")
every_way = pytest.mark.parametrize("how", WITH_PICTURES)
every_way_for_pixels = pytest.mark.parametrize("how", ("http-json", *WITH_PICTURES))
NORMAL = {"scale": "1/255", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SIZES = ((64, 64), (48, 96), (300, 200), (1, 7))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    for name in ("detector", "blue_first"):
        tiny_models.yolov8(weights(folder / name))
    detector: dict[str, Any] = {"family": "yolov8", "labels": ["one", "two", "three"]}
    write_yaml(folder / "detector", **detector, aliases={"INPUT": "images", "DET_RESULT": "result", "BOXES": "output0"})
    write_yaml(folder / "blue_first", **detector, raw_pictures="bgr")
    tiny_models.yolov5(weights(folder / "fixed"), batch=1)
    write_yaml(folder / "fixed", family="yolov5")
    tiny_models.yolov8(weights(folder / "fours"))
    write_yaml(folder / "fours", **detector, batching={"sizes": [1, 4]})
    tiny_models.classifier(weights(folder / "classifier"), softmax=True)
    steps = [{"resize": [32, 32]}, {"normalize": NORMAL}]
    write_yaml(folder / "classifier", task="classification", labels=list("abcde"), preprocess=steps)
    tiny_models.classifier(weights(folder / "bytes"), kind=TensorProto.UINT8, layout="NHWC")
    write_yaml(folder / "bytes", task="classification", preprocess=[{"resize": [32, 32]}])
    tiny_models.paddle_detector(weights(folder / "paddle"))
    write_yaml(
        folder / "paddle",
        family="paddle_detection",
        preprocess=[{"resize": [SIZE, SIZE]}, {"normalize": {"scale": "1/255"}}],
    )
    return folder


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Server]:
    with serving(models, *DEMO_MODELS.iterdir()) as running:
        yield running


@pytest.fixture(scope="session")
def ways(server: Server) -> Iterator[dict[str, Way]]:
    with ways_to(server) as made:
        yield made


def encoded(pixels: Pixels, kind: str = ".png") -> bytes:
    written, data = cv2.imencode(kind, pixels[:, :, ::-1])
    assert written
    return data.tobytes()


def pictures(*files: bytes) -> Array:
    made = np.empty(len(files), object)
    made[:] = files
    return made


def samples() -> list[Pixels]:
    return [tiny_models.picture(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def predicted(server: Server, model: str, *files: bytes, **options: Any) -> list[Any]:
    """The results of the server's own way to ask."""
    body = [("image", ("picture", file)) for file in files]
    answer = httpx.post(f"{server.url}/v1/models/{model}/predict", files=body, params=options, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    results: list[Any] = answer.json()["results"]
    return results


def results_of(told: Told, name: str = "result") -> list[Any]:
    return [json.loads(text) for text in told.outputs[name].ravel().tolist()]


def letterboxed(pixels: Pixels) -> NDArray[np.float32]:
    """(1, 3, SIZE, SIZE) as Ultralytics prepares a picture."""
    height, width = pixels.shape[:2]
    ratio = SIZE / max(height, width)
    inner = max(1, round(height * ratio)), max(1, round(width * ratio))
    box = np.full((SIZE, SIZE, 3), 114, np.uint8)
    top, left = (SIZE - inner[0]) // 2, (SIZE - inner[1]) // 2
    box[top : top + inner[0], left : left + inner[1]] = cv2.resize(pixels, inner[::-1], interpolation=cv2.INTER_LINEAR)
    return (box.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None]


def normalised(pixels: Pixels) -> NDArray[np.float32]:
    """(1, 3, 32, 32) as `classifier` says it."""
    small = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_LINEAR)
    made = (small.astype(np.float32) / np.float32(255) - np.array(NORMAL["mean"], np.float32)) / np.array(
        NORMAL["std"], np.float32
    )
    return np.ascontiguousarray(made.transpose(2, 0, 1)[None], np.float32)


class TestPictures:
    @every_way
    @pytest.mark.parametrize(
        "model", ["detector", "classifier", "fixed", "fours", "bytes", "paddle", "shapes", "digits"]
    )
    def test_results_are_those_of_predict(self, how: str, model: str, ways: dict[str, Way], server: Server) -> None:
        files = [encoded(pixels) for pixels in samples()[:3]]
        wanted = predicted(server, model, *files)
        (picture_input,) = [name for name in _inputs(server, model) if name != "scale_factor"]
        told = ways[how](Ask(model, {picture_input: pictures(*files)}))
        assert list(told.outputs) == ["result"]
        assert told.outputs["result"].shape == (3,)
        assert results_of(told) == wanted
        column = ways[how](Ask(model, {picture_input: pictures(*files)[:, None]}))
        assert column.outputs["result"].shape == (3, 1)
        assert results_of(column) == wanted

    @every_way_for_pixels
    def test_pixels_are_as_good_as_files(self, how: str, ways: dict[str, Way], server: Server) -> None:
        first = tiny_models.picture(40, 56, 3)
        second = tiny_models.picture(40, 56, 4)
        wanted = predicted(server, "detector", encoded(first), encoded(second))
        told = ways[how](Ask("detector", {"images": np.stack([first, second])}))
        assert results_of(told) == wanted
        told = ways[how](Ask("detector", {"images": second}))
        assert told.outputs["result"].shape == (1,)
        assert results_of(told) == wanted[1:]

    @every_way_for_pixels
    def test_blue_may_come_first(self, how: str, ways: dict[str, Way], server: Server) -> None:
        pixels = tiny_models.picture(40, 56, 3)
        (wanted,) = predicted(server, "detector", encoded(pixels))
        turned = np.ascontiguousarray(pixels[:, :, ::-1])
        assert results_of(ways[how](Ask("blue_first", {"images": turned}))) == [wanted]
        assert results_of(ways[how](Ask("blue_first", {"images": pixels}, parameters={"color": "rgb"}))) == [wanted]
        assert results_of(ways[how](Ask("detector", {"images": turned}, parameters={"color": "bgr"}))) == [wanted]
        assert results_of(ways[how](Ask("detector", {"images": turned}))) != [wanted]

    @every_way
    def test_aliases_stand_for_the_input_and_the_result(self, how: str, ways: dict[str, Way], server: Server) -> None:
        file = encoded(samples()[1])
        told = ways[how](Ask("detector", {"INPUT": pictures(file)}, outputs={"DET_RESULT": {}, "BOXES": {}}))
        assert list(told.outputs) == ["DET_RESULT", "BOXES"]
        assert results_of(told, "DET_RESULT") == predicted(server, "detector", file)
        assert told.outputs["BOXES"].shape == (1, 7, 64)

    @every_way
    @pytest.mark.parametrize(
        ("model", "options"),
        [
            ("detector", {"score_threshold": 0.5, "max_detections": 3}),
            ("detector", {"iou_threshold": 0.1, "classes": "two"}),
            ("classifier", {"top_k": 2}),
            ("classifier", {"score_threshold": 0.2, "classes": "a,c"}),
        ],
    )
    def test_parameters_are_the_options_of_predict(
        self, how: str, model: str, options: dict[str, Any], ways: dict[str, Way], server: Server
    ) -> None:
        files = [encoded(pixels) for pixels in samples()]
        wanted = predicted(server, model, *files, **options)
        assert wanted != predicted(server, model, *files)
        (name,) = _inputs(server, model)
        assert results_of(ways[how](Ask(model, {name: pictures(*files)}, parameters=options))) == wanted


def _inputs(server: Server, model: str) -> list[str]:
    answer = httpx.get(f"{server.url}/v2/models/{model}", timeout=PATIENCE).json()
    return [one["name"] for one in answer["inputs"]]


class TestTensors:
    @every_way
    @pytest.mark.parametrize("model", ["detector", "fours"])
    def test_a_detectors_own_tensors_are_those_of_a_picture_prepared_by_hand(
        self, how: str, model: str, ways: dict[str, Way], models: Path
    ) -> None:
        pixels = samples()
        wanted = [onnx_runtime(weights(models / model), {"images": letterboxed(one)})["output0"] for one in pixels]
        told = ways[how](Ask(model, {"images": pictures(*map(encoded, pixels))}, outputs={"output0": {}}))
        assert list(told.outputs) == ["output0"]
        np.testing.assert_allclose(told.outputs["output0"], np.concatenate(wanted), rtol=1e-3, atol=1e-2)

    @every_way
    def test_a_classifiers_own_tensors_are_those_of_a_picture_prepared_by_hand(
        self, how: str, ways: dict[str, Way], models: Path
    ) -> None:
        pixels = samples()[:3]
        wanted = [onnx_runtime(weights(models / "classifier"), {"x": normalised(one)})["logits"] for one in pixels]
        told = ways[how](
            Ask("classifier", {"x": pictures(*map(encoded, pixels))}, outputs={"logits": {}, "result": {}})
        )
        assert_same(told.outputs["logits"], np.concatenate(wanted))
        best = [int(np.argmax(one)) for one in wanted]
        assert [one["label_ids"][0] for one in results_of(told)] == best

    @every_way_for_pixels
    def test_a_tensor_that_the_caller_prepared_is_taken_as_it_is(
        self, how: str, ways: dict[str, Way], models: Path
    ) -> None:
        x = np.concatenate([normalised(one) for one in samples()[:3]])
        wanted = onnx_runtime(weights(models / "classifier"), {"x": x})
        told = ways[how](Ask("classifier", {"x": x}))
        assert list(told.outputs) == ["logits"]
        assert_same(told.outputs["logits"], wanted["logits"])

    @every_way_for_pixels
    def test_results_can_be_had_of_a_prepared_tensor(self, how: str, ways: dict[str, Way], server: Server) -> None:
        pixels = tiny_models.picture(SIZE, SIZE, 5)
        (wanted,) = predicted(server, "detector", encoded(pixels))
        told = ways[how](Ask("detector", {"images": letterboxed(pixels)}, outputs={"result": {}}))
        (found,) = results_of(told)
        assert found["label_ids"] == wanted["label_ids"]
        np.testing.assert_allclose(found["boxes"], wanted["boxes"], atol=0.05)

    @every_way
    def test_classes_of_pictures_have_their_labels(self, how: str, ways: dict[str, Way], server: Server) -> None:
        files = [encoded(pixels) for pixels in samples()[:2]]
        told = ways[how](Ask("classifier", {"x": pictures(*files)}, outputs={"logits": {"classification": 2}}))
        for row, result in zip(told.outputs["logits"].tolist(), predicted(server, "classifier", *files), strict=True):
            found = [text.decode().split(":") for text in row]
            assert [int(one[1]) for one in found] == result["label_ids"][:2]
            assert [one[2] for one in found] == result["labels"][:2]
            assert [float(one[0]) for one in found] == pytest.approx(result["scores"][:2], abs=1e-4)

    @every_way
    def test_the_rows_of_all_pictures_come_with_their_counts(
        self, how: str, ways: dict[str, Way], models: Path
    ) -> None:
        """Paddle's detectors give the rows of all pictures in one tensor."""
        pixels = [tiny_models.picture(SIZE, SIZE, seed) for seed in (1, 2, 3)]
        feeds = {
            "image": np.concatenate([(one.astype(np.float32) / 255).transpose(2, 0, 1)[None] for one in pixels]),
            "scale_factor": np.ones((3, 2), np.float32),
        }
        wanted = onnx_runtime(weights(models / "paddle"), feeds)
        files = pictures(*map(encoded, pixels))
        told = ways[how](Ask("paddle", {"image": files}, outputs={"rows": {}, "counts": {}}))
        assert told.outputs["counts"].tolist() == wanted["counts"].tolist()
        rows, start = told.outputs["rows"], 0
        assert rows.shape == wanted["rows"].shape
        for count in told.outputs["counts"].tolist():
            ours, theirs = rows[start : start + count], wanted["rows"][start : start + count]
            key = np.lexsort(ours.T.round(2)), np.lexsort(theirs.T.round(2))
            np.testing.assert_allclose(ours[key[0]], theirs[key[1]], atol=0.05)
            start += count


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_pictures_and_results_may_lie_in_shared_memory(kind: str, server: Server) -> None:
    files = [encoded(pixels) for pixels in samples()[:2]]
    wanted = predicted(server, "detector", *files)
    packed, room = serialize_byte_tensor(pictures(*files)), 1 << 16
    size, name = len(packed.item()), f"visionpool-pictures-{kind}"
    library: Any = triton_http if kind == "http" else triton_grpc
    handle = shm.create_shared_memory_region(name, f"/{name}", size + room)
    try:
        with library.InferenceServerClient(
            server.url.removeprefix("http://") if kind == "http" else server.grpc
        ) as client:
            client.register_system_shared_memory("pictures", f"/{name}", size + room)
            shm.set_shared_memory_region(handle, [packed])
            tensor, output = library.InferInput("images", [2], "BYTES"), library.InferRequestedOutput("result")
            tensor.set_shared_memory("pictures", size)
            output.set_shared_memory("pictures", room, offset=size)
            client.infer("detector", [tensor], outputs=[output])
            found = shm.get_contents_as_numpy(handle, np.object_, [2], offset=size)
            assert [json.loads(text) for text in found.tolist()] == wanted
            client.unregister_system_shared_memory("pictures")
    finally:
        shm.destroy_shared_memory_region(handle)


REFUSALS: dict[str, tuple[Ask, str]] = {
    "a corrupt picture among good ones": (
        Ask("detector", {"images": pictures(encoded(samples()[0]), encoded(samples()[1])[:60], encoded(samples()[2]))}),
        "picture 2 of 3",
    ),
    "no picture at all": (Ask("detector", {"images": pictures(b"hello there")}), "picture"),
    "an empty picture": (Ask("detector", {"images": pictures(b"")}), ""),
    "no pictures": (Ask("detector", {"images": pictures()}), "[0]"),
    "two columns of pictures": (
        Ask("detector", {"images": np.array([[b"a", b"b"]], object)}),
        "BYTES of shape [N] or [N, 1], not [1, 2]",
    ),
    "pixels without channels": (Ask("detector", {"images": np.ones((4, 4), np.uint8)}), "not [4, 4]"),
    "pixels of four channels": (Ask("detector", {"images": np.ones((1, 4, 4, 4), np.uint8)}), "not [1, 4, 4, 4]"),
    "pixels of no height": (Ask("detector", {"images": np.ones((1, 0, 4, 3), np.uint8)}), "not [1, 0, 4, 3]"),
    "another type": (Ask("detector", {"images": np.ones((1, 3, 64, 64), np.int8)}), "encoded pictures are BYTES"),
    "what the server makes itself": (
        Ask("paddle", {"image": pictures(encoded(samples()[0])), "scale_factor": np.ones((1, 2), np.float32)}),
        "'scale_factor' is made by the server",
    ),
    "an unknown option's value": (
        Ask("detector", {"images": pictures(encoded(samples()[0]))}, parameters={"score_threshold": 5.0}),
        "score_threshold",
    ),
    "an option that means nothing to it": (
        Ask("detector", {"images": pictures(encoded(samples()[0]))}, parameters={"top_k": 5}),
        "top_k means nothing to detector",
    ),
    "an unknown colour order": (
        Ask("detector", {"images": np.ones((4, 4, 3), np.uint8)}, parameters={"color": "cmyk"}),
        "color is rgb or bgr",
    ),
    "classes of results": (
        Ask("detector", {"images": pictures(encoded(samples()[0]))}, outputs={"result": {"classification": 2}}),
        "classification is for numbers",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_all_ways_refuse_alike(what: str, ways: dict[str, Way]) -> None:
    ask, text = REFUSALS[what]
    told = {}
    for how in WITH_PICTURES:
        with pytest.raises(Refused) as caught:
            ways[how](ask)
        told[how] = (caught.value.kind, caught.value.message)
    assert {one[0] for one in told.values()} == {"INVALID_ARGUMENT"}, told
    assert len({one[1] for one in told.values()}) == 1, told
    assert text in told["grpc-raw"][1]


def test_metadata_list_the_models_own_tensors_and_the_configuration_the_other_ways(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        metadata = client.get("/v2/models/detector").json()
        assert [one["name"] for one in metadata["inputs"]] == ["images"]
        assert [one["name"] for one in metadata["outputs"]] == ["output0"]
        parameters = client.get("/v2/models/detector/config").json()["parameters"]
        assert parameters["picture_input"]["string_value"] == "images"
        assert json.loads(parameters["aliases"]["string_value"])["DET_RESULT"] == "result"


@pytest.fixture(scope="module")
def real(testdata: Path) -> Iterator[Server]:
    with serving(testdata / "models" / "yolov5n", testdata / "models" / "squeezenet") as running:
        yield running


class TestRealModels:
    @every_way_for_pixels
    def test_a_real_classifiers_scores_are_onnx_runtimes(self, how: str, real: Server, testdata: Path) -> None:
        path = next((testdata / "models" / "squeezenet").glob("*.onnx"))
        (name,) = _inputs(real, "squeezenet")
        x = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
        wanted = onnx_runtime(path, {name: x})
        with ways_to(real, [how]) as ways:
            told = ways[how](Ask("squeezenet", {name: x}))
        assert list(told.outputs) == list(wanted)
        for output, array in told.outputs.items():
            assert_same(array, wanted[output])

    @pytest.mark.parametrize("how", ["http-binary", "grpc-raw"])
    def test_photos_of_different_sizes_in_one_request(self, how: str, real: Server, testdata: Path) -> None:
        files = [path.read_bytes() for path in sorted((testdata / "images" / "coco64").glob("**/*.jpg"))[:4]]
        assert len(files) == 4
        with ways_to(real, [how]) as ways:
            for model in ("yolov5n", "squeezenet"):
                (name,) = _inputs(real, model)
                told = ways[how](Ask(model, {name: pictures(*files)}))
                assert results_of(told) == predicted(real, model, *files)

    @pytest.mark.parametrize("how", ["http-binary", "grpc-raw"])
    def test_a_tensor_prepared_by_hand_gives_onnx_runtimes_numbers(
        self, how: str, real: Server, testdata: Path
    ) -> None:
        path = next((testdata / "models" / "yolov5n").glob("*.onnx"))
        (name,) = _inputs(real, "yolov5n")
        x = np.random.default_rng(0).random((1, 3, 640, 640)).astype(np.float32)
        (wanted,) = onnx_runtime(path, {name: x}).values()
        with ways_to(real, [how]) as ways:
            (found,) = ways[how](Ask("yolov5n", {name: x})).outputs.values()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-2)
