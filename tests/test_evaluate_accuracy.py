"""Real models on real pictures, by the command: the figures of another evaluator (testdata/README.md), reproduced."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import yaml

from tests.test_evaluate import measured


@pytest.mark.parametrize(
    ("model", "iou_threshold", "expected"),
    [
        ("yolov5n", 0.65, (0.3444, 0.5406)),
        ("yolov8n", 0.65, (0.4384, 0.6014)),
        ("picodet_s_320", 0.6, (0.3328, 0.5192)),
    ],
)
def test_a_detector_scores_what_its_reference_does(
    testdata: Path, model: str, iou_threshold: float, expected: tuple[float, float]
) -> None:
    options = ("--precision", "f32", "--iou-threshold", iou_threshold, "--max-detections", 100)
    report = measured(testdata / "models" / model, testdata / "images" / "coco64", *options)
    assert (report["metrics"]["map50_95"], report["metrics"]["map50"]) == pytest.approx(expected, abs=0.003)
    assert len(report["classes"]) == 63
    assert report["classes_matched_by"] == "number"


def test_a_classifier_scores_what_its_reference_does(testdata: Path) -> None:
    report = measured(testdata / "models" / "squeezenet", testdata / "images" / "imagenet100", "--precision", "f32")
    assert report["metrics"] == pytest.approx({"top1": 0.66, "top5": 0.85}, abs=0.01)
    assert report["pictures"] == 100
    assert any("900 of the 1000 pictures listed are not there" in note for note in report["notes"])


def test_int8_is_a_little_less_accurate_and_the_pictures_say_where(testdata: Path, tmp_path: Path) -> None:
    models = testdata / "models"
    comparison = measured(
        *(models / "yolov8n", testdata / "images" / "coco64", "--against", models / "yolov8n_int8_ir"),
        *("--limit", 24, "--save-worst", tmp_path, "--worst", 3),
    )
    assert abs(comparison["difference"]["map50_95"]) < 0.05
    assert 0.8 < comparison["agreement"] < 0.99
    agreements = [entry["agreement"] for entry in comparison["pictures"]]
    assert len(agreements) == 24
    assert agreements == sorted(agreements)
    assert comparison["pictures"][0]["what"]
    assert len(list(tmp_path.glob("0?-*.jpg"))) == 3


def person(session: onnxruntime.InferenceSession, picture: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """PP-HumanSeg by OpenCV, NumPy and onnxruntime: (H, W), 255 where it sees one."""
    image = cv2.imread(str(picture), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    small = cv2.resize(image, (398, 224), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    scores = session.run(None, {"x": ((small - 0.5) / 0.5).transpose(2, 0, 1)[None]})[0][0]
    large = [cv2.resize(one, image.shape[1::-1], interpolation=cv2.INTER_LINEAR) for one in scores]
    return np.where(large[1] > large[0], 255, 0).astype(np.uint8)


def test_masks_that_another_implementation_made_are_found_again(testdata: Path, tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(testdata / "models" / "humanseg" / "pphumanseg_lite.onnx")
    for picture in sorted((testdata / "images" / "photos").glob("humanseg_*.jpg")):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / "images" / picture.name).symlink_to(picture)
        assert cv2.imwrite(str(tmp_path / "masks" / f"{picture.stem}.png"), person(session, picture))
    report = measured(testdata / "models" / "humanseg", tmp_path)
    assert report["pictures"] == 2
    assert report["metrics"]["miou"] > 0.99
    assert [entry["name"] for entry in report["classes"]] == ["background", "person"]
    assert "the masks hold only 0 and 255, which are taken for the classes 0 and 1" in report["notes"]


WORDS = ("Performance", "GDANSK", "Server", "Model", "OpenVINO", "Pipeline", "2021", "Intel", "Rotation")  # read by eye


def test_a_reader_of_lines_makes_the_errors_that_were_put_into_the_truth(testdata: Path, tmp_path: Path) -> None:
    model = tmp_path / "reader"
    model.mkdir()
    for file in (testdata / "models" / "ppocr_rec_en").iterdir():
        (model / file.name).symlink_to(file)
    (model / "model.yaml").write_text(
        yaml.safe_dump({"family": "ocr_recognition", "task": "ocr", "labels": "en_dict.txt"})
    )
    lines = [f"ovms_text_images_{index}.jpg\t{word}\n" for index, word in enumerate(WORDS)]
    (tmp_path / "rec_gt.txt").write_text("".join(lines))
    right = measured(model, tmp_path / "rec_gt.txt", "--images", testdata / "images" / "ocr")
    assert right["metrics"] == pytest.approx({"cer": 0, "line_accuracy": 1, "similarity": 1})
    (tmp_path / "rec_gt.txt").write_text("".join(lines).replace("GDANSK", "Gdansk!").replace("2021", "2022"))
    wrong = measured(model, tmp_path / "rec_gt.txt", "--images", testdata / "images" / "ocr")
    assert wrong["metrics"]["cer"] == pytest.approx((6 + 1) / (sum(map(len, WORDS)) + 1))
    assert wrong["metrics"]["line_accuracy"] == pytest.approx(7 / 9)
    assert [(m["truth"], m["predicted"]) for m in wrong["mistakes"]] == [("Gdansk!", "GDANSK"), ("2022", "2021")]
