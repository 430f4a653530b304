"""PP-OCR's own weights against golden answers that an independent implementation gave (`ocr_reference`), box by box.

The reference follows PaddleOCR's tools on ONNX Runtime, NumPy, OpenCV and pyclipper; it pads lines to our fixed widths, so that
scores must be equal, and says what PaddleOCR's own padding, which depends on the neighbours of a line, would have given.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import openvino as ov
import pytest
import yaml
from visionpool.results import ClassifyResult, OCRResult
from visionpool_server.app import offline
from visionpool_server.families.ocr_recognition import by_class
from visionpool_server.models.loader import Defaults
from visionpool_server.models.ocr import characters
from visionpool_server.service import Service

from tests import ocr_reference
from tests.real_server import Server, serving

GOLDEN: Mapping[str, list[dict[str, Any]]] = json.loads(ocr_reference.GOLDEN.read_text(encoding="utf-8"))
PICTURES = list(GOLDEN)
CLOSE = 1e-4  # OpenVINO and ONNX Runtime agree to 3e-5 on these pictures
ONNX = {"detect": "ppocr_det", "classify": "ppocr_cls", "read": "ppocr_rec_en"}
PADDLE = {"detect": "ppocr_det_paddle", "classify": "ppocr_cls", "read": "ppocr_rec_en_paddle"}
EN = [
    "3",
    "MouteShotsDataset",
    "To facilitate the shot type analysis in videos, we collect MouteShots, a large-scale",
    "shot type annotation set that contains 46K shots from 7858 movies. The details",
    "of this dataset are specified as follows.",
]


def write_pipeline(folder: Path, testdata: Path, steps: Mapping[str, str], **said: Any) -> Path:
    models = testdata / "models"
    content = {
        "task": "ocr",
        "steps": {step: str(models / name) for step, name in steps.items()},
        "labels": str(models / ocr_reference.DICTIONARY),
        **said,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pictures(testdata: Path) -> dict[str, bytes]:
    """The golden pictures; without loss, as they are turned."""
    made = ocr_reference.variants(testdata / "images" / "ocr")
    return {name: cv2.imencode(".png", image)[1].tobytes() for name, image in made.items()}


@pytest.fixture(scope="module", params=["onnx on openvino", "onnx on onnxruntime", "paddle on openvino"])
def service(
    request: pytest.FixtureRequest, testdata: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    form, _, backend = request.param.partition(" on ")
    folder = tmp_path_factory.mktemp(form) / "ocr"
    write_pipeline(folder, testdata, PADDLE if form == "paddle" else ONNX, runtime={"backend": backend})
    with offline([folder], Defaults(), max_pixels=50_000_000) as made:
        yield made


def read(service: Service, picture: bytes, model: str = "ocr") -> OCRResult:
    result = asyncio.run(service.predict(service.models.get(model), picture)).result
    assert isinstance(result, OCRResult)
    return result


@pytest.mark.parametrize("name", PICTURES)
def test_boxes_texts_and_scores_are_those_of_the_reference(
    service: Service, pictures: dict[str, bytes], name: str
) -> None:
    result = read(service, pictures[name])
    golden = {tuple(line["box"]): line for line in GOLDEN[name]}
    assert sorted(result.boxes) == sorted(golden)
    expected = [golden[box] for box in result.boxes]
    assert list(result.text) == [line["text"] for line in expected]
    assert list(result.cls_labels) == [line["label"] for line in expected]
    np.testing.assert_allclose(result.rec_scores, [line["score"] for line in expected], atol=CLOSE)
    np.testing.assert_allclose(result.cls_scores, [line["label_score"] for line in expected], atol=10 * CLOSE)


def test_the_golden_file_is_what_the_reference_says_today(testdata: Path) -> None:
    reference = ocr_reference.Reference(testdata / "models")
    images = ocr_reference.variants(testdata / "images" / "ocr")
    for name in ("en", "line", "en turned by 180"):
        found = reference.read(images[name])
        assert [line["text"] for line in found] == [line["text"] for line in GOLDEN[name]]
        assert [line["box"] for line in found] == [line["box"] for line in GOLDEN[name]]
        scores = [line["score"] for line in GOLDEN[name]]
        np.testing.assert_allclose([line["score"] for line in found], scores, atol=CLOSE)


def test_en_has_five_lines_in_the_order_of_reading(service: Service, testdata: Path) -> None:
    result = read(service, (testdata / "images" / "ocr" / "en.jpg").read_bytes())
    assert list(result.text) == EN == [line["text"] for line in GOLDEN["en"]]  # PaddleOCR's order too
    assert min(result.rec_scores) > 0.97


@pytest.mark.parametrize("name", [name for name in PICTURES if name.startswith("en ")])
def test_a_turned_page_is_read_in_the_order_of_the_upright_one(
    service: Service, pictures: dict[str, bytes], name: str
) -> None:
    """Each line is known by the end of its text: the reader sees other pixels, and now and then another letter."""
    ends = [text[-7:] for text in EN]
    seen = [text[-7:] for text in read(service, pictures[name]).text if len(text) > 1]
    places = [ends.index(end) if end in ends else 1 for end in seen]  # the title has its chapter before it
    assert places == sorted(places)
    assert len(places) >= (1 if name == "en turned by 270" else 4)


def test_other_padding_changes_little(testdata: Path) -> None:
    """PaddleOCR's own padding gives the same text but for a few letters: this version 2 reader is that sensitive."""
    lines = [line for name in PICTURES for line in GOLDEN[name] if len(line["text"]) > 20]
    wrong = sum(edits(line["text"], line["paddle_text"]) for line in lines)
    assert wrong / sum(len(line["text"]) for line in lines) < 0.02


def edits(one: str, other: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


@pytest.mark.parametrize("model", ["ppocr_cls", "ppocr_cls_paddle"])
def test_the_classifier_knows_which_way_up_a_line_is(testdata: Path, tmp_path: Path, model: str) -> None:
    """Both files, although Paddle's declares lines of 32x100; against OpenVINO and NumPy alone."""
    weights = next(path for path in (testdata / "models" / model).iterdir() if path.suffix in (".onnx", ".pdmodel"))
    (tmp_path / "model.yaml").write_text(f"family: ocr_direction\nweights: {weights}\n", encoding="utf-8")
    network = ov.Core().read_model(weights)
    network.reshape([1, 3, 48, 192])
    compiled = ov.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with offline([tmp_path], Defaults(), max_pixels=50_000_000) as service:
        (direction,) = service.models
        for name in ("text_cls.jpg", "text_rec.jpg", "en_rec.jpg"):
            line = ocr_reference.opened(testdata / "images" / "ocr" / name)
            for image, turned in ((line, 0), (cv2.rotate(line, cv2.ROTATE_180), 1)):
                picture = cv2.imencode(".png", image)[1].tobytes()
                seen = asyncio.run(service.predict(direction, picture)).result
                assert isinstance(seen, ClassifyResult)
                expected = compiled(ocr_reference.line(np.asarray(image), 48, 192)[None])[0][0]
                assert seen.label_ids == (int(expected.argmax()),)
                assert seen.scores[0] == pytest.approx(float(expected.max()), abs=CLOSE)
                if name == "text_rec.jpg":
                    assert seen.label_ids == (turned,)


def test_paddleocrs_own_folders_need_nothing_but_the_task(
    testdata: Path, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    models, folder = testdata / "models", tmp_path / "ocr"
    for name, source in (
        ("ch_PP-OCRv3_det_infer", "ppocr_det_paddle"),
        ("ch_ppocr_mobile_v2.0_cls_infer", "ppocr_cls_paddle"),
        ("en_number_mobile_v2.0_rec_infer", "ppocr_rec_en_paddle"),
    ):
        (folder / name).mkdir(parents=True)
        for file in (models / source).iterdir():
            (folder / name / file.name).symlink_to(file)
    (folder / "en_dict.txt").symlink_to(models / ocr_reference.DICTIONARY)
    (folder / "model.yaml").write_text("task: ocr\n", encoding="utf-8")
    with offline([folder], Defaults(), max_pixels=50_000_000) as service:
        assert read(service, pictures["en"]).text == tuple(EN)
        assert read(service, pictures["en turned by 270"]).text[-1] == EN[-1]


def test_a_line_is_read_alone_as_the_reference_reads_it(service: Service, testdata: Path) -> None:
    reference = ocr_reference.Reference(testdata / "models")
    for name in ("en_rec.jpg", "text_rec.jpg", "test_without_det.jpg", "short.png"):
        file = testdata / "images" / "ocr" / name
        ((text, score),) = reference.recognise([ocr_reference.opened(file)], ocr_reference.WIDTHS)
        told = read(service, file.read_bytes(), "ocr.read")
        assert told.text == (text,)
        assert told.rec_scores[0] == pytest.approx(score, abs=CLOSE)


def test_paddleocr_3s_classifier_turns_every_line(testdata: Path, tmp_path: Path, pictures: dict[str, bytes]) -> None:
    """PP-LCNet_x0_25_textline_ori, a program of Paddle 3 with its `inference.yml`, as the second step: an ordinary classifier."""
    pytest.importorskip("paddle2onnx")
    folder = write_pipeline(tmp_path / "ocr", testdata, {**ONNX, "classify": "pplcnet_textline_pir"})
    with offline([folder], Defaults(cache_dir=tmp_path / "cache"), max_pixels=50_000_000) as service:
        assert service.models.get("ocr.classify").labels == ("0_degree", "180_degree")
        for name, label in (("en", 0), ("en turned by 180", 1), ("en turned by 270", 1)):
            result = read(service, pictures[name])
            assert [text[-7:] for text in result.text[2:]] == [text[-7:] for text in EN[2:]]
            assert (len(result.text), result.text[0]) == (5, "3")
            assert result.cls_labels[1:] == (label,) * 4


def test_a_large_dictionary_is_read_as_it_stands(testdata: Path) -> None:
    chinese = characters("ppocr_keys_v1.txt", testdata / "models" / "ocr_dicts")
    assert (len(chinese), chinese[:3]) == (6623, ("'", "疗", "绚"))
    assert len(by_class(chinese, 6625)) == 6625
    english = characters("en_dict.txt", testdata / "models" / "ppocr_rec_en")
    assert (len(english), english[-1]) == (95, " ")
    assert characters(None, testdata / "models" / "ppocr_rec_en") == english


class TestServed:
    @pytest.fixture(scope="module")
    @staticmethod
    def server(testdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        folder = write_pipeline(tmp_path_factory.mktemp("served") / "ocr", testdata, ONNX)
        with serving(folder) as running:
            yield running

    def test_32_different_pictures_at_once_get_each_its_own_text(self, server: Server, testdata: Path) -> None:
        page = ocr_reference.opened(testdata / "images" / "ocr" / "en.jpg")
        cuts = [page[:, : 709 - 9 * i] if i % 2 else page[9 * (i // 4) :, :] for i in range(32)]
        bodies = [cv2.imencode(".png", image)[1].tobytes() for image in cuts]

        async def ask(client: httpx.AsyncClient, body: bytes) -> Any:
            answer = await client.post(f"{server.url}/v1/models/ocr/predict", content=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["results"][0]

        async def both() -> tuple[list[Any], list[Any]]:
            async with httpx.AsyncClient(timeout=200) as client:
                alone = [await ask(client, body) for body in bodies]
                return alone, list(await asyncio.gather(*(ask(client, body) for body in bodies)))

        alone, together = asyncio.run(both())
        assert together == alone
        assert len({json.dumps(result) for result in alone}) > 20
