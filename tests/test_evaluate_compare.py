"""Two models on the same pictures: how far they agree, on which pictures they do not, and how that is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionpool.errors import InvalidSetting
from visionpool.results import (
    ClassifyResult,
    DetectionResult,
    EmbeddingResult,
    FaceDetectionResult,
    OCRResult,
    Result,
    SegmentationResult,
)
from visionpool_server.evaluation import Comparison, Dataset, PictureDifference, compare
from visionpool_server.evaluation.agreement import Comparer
from visionpool_server.evaluation.plots import save_plot
from visionpool_server.evaluation.report import Chart, ClassScore, Confusion, Curves, LineErrors, Report
from visionpool_server.evaluation.truth import Sample, Truth
from visionpool_server.evaluation.worst import save_worst

from tests.evaluation_data import Scripted, distinct

LABELS = ("cat", "dog", "cow")
A, B, C = (0.0, 0.0, 20.0, 20.0), (30.0, 0.0, 50.0, 20.0), (0.0, 30.0, 20.0, 40.0)


def seen(*items: tuple[tuple[float, ...], float, int]) -> DetectionResult:
    boxes: Any = tuple(box for box, _, _ in items)
    return DetectionResult(boxes, tuple(s for _, s, _ in items), tuple(i for *_, i in items))


def between(
    first: Result, second: Result, labels: tuple[str, ...] = LABELS, others: tuple[str, ...] = LABELS
) -> PictureDifference:
    return Comparer(labels, others).compare("a", first, second)


class TestObjects:
    def test_the_same_answers_agree_and_need_no_words(self) -> None:
        answer = seen((A, 0.9, 0), (B, 0.4, 1), (C, 0.001, 2))
        assert (between(answer, answer).agreement, between(answer, answer).what) == (1.0, "")
        assert between(seen(), seen()).agreement == 1

    def test_agreement_is_the_overlap_of_pairs_over_all_objects(self) -> None:
        moved = (0.0, 5.0, 20.0, 25.0)  # IoU 15 / 25
        difference = between(seen((A, 0.9, 0), (B, 0.9, 1)), seen((moved, 0.7, 0), (C, 0.5, 2), (C, 0.6, 2)))
        assert difference.agreement == pytest.approx(0.6 / 4)
        assert difference.what == "missing dog, extra 2 cow"
        assert difference.details["mean_iou"] == pytest.approx(0.6)
        assert difference.details["mean_score_difference"] == pytest.approx(0.2)
        assert (difference.details["missing"], difference.details["extra"]) == ({"dog": 1}, {"cow": 2})

    def test_objects_of_another_class_are_no_pair(self) -> None:
        assert between(seen((A, 0.9, 0)), seen((A, 0.9, 1))).what == "missing cat, extra dog"

    def test_a_score_just_over_and_one_just_under_the_threshold_are_a_pair(self) -> None:
        assert between(seen((A, 0.26, 0)), seen((A, 0.24, 0))).agreement == 1
        assert between(seen((A, 0.26, 0)), seen((A, 0.10, 0))).agreement == 0
        assert between(seen((A, 0.24, 0)), seen((A, 0.24, 0))).details["matched"] == 0

    def test_each_object_is_in_one_pair_and_the_closest_wins(self) -> None:
        near = (0.0, 1.0, 20.0, 21.0)
        difference = between(seen((near, 0.9, 0), (A, 0.5, 0)), seen((A, 0.9, 0)))
        assert (difference.agreement, difference.what) == (0.5, "missing cat")

    def test_classes_are_matched_by_name_where_both_have_names(self) -> None:
        ours, theirs = seen((A, 0.9, 0), (B, 0.9, 1)), seen((A, 0.9, 2), (B, 0.9, 0))
        assert between(ours, theirs, LABELS, ("dog", "sheep", "cat")).agreement == 1
        assert between(seen((A, 0.9, 1)), seen((A, 0.9, 1)), LABELS, ("a", "b", "c")).what == "missing dog, extra b"
        assert between(seen((A, 0.9, 1)), seen((A, 0.9, 1)), LABELS, ("0", "1", "2")).agreement == 1

    def test_faces_are_compared_by_their_boxes(self) -> None:
        assert between(FaceDetectionResult((A, B), (0.9, 0.8)), FaceDetectionResult((A,), (0.9,))).agreement == 0.5

    def test_other_kinds_of_answers_are_not(self) -> None:
        with pytest.raises(InvalidSetting, match="'embedding' are not compared"):
            between(EmbeddingResult((1.0,)), ClassifyResult((0,), (1.0,)))


class TestOthers:
    def test_classes_agree_as_far_as_their_scores_do(self) -> None:
        first = ClassifyResult((0, 1, 2), (0.6, 0.3, 0.1))
        second = ClassifyResult((1, 0, 2), (0.5, 0.4, 0.1))
        difference = between(first, second)
        assert difference.agreement == pytest.approx(0.8)
        assert difference.what == "cat 0.60 → dog 0.50"
        assert difference.details["changed"]
        assert between(first, ClassifyResult((0, 1, 2), (0.7, 0.2, 0.1))).what == "cat 0.60 → 0.70"
        assert between(first, first).what == ""

    def test_areas_agree_by_the_mean_iou_of_classes(self) -> None:
        first = SegmentationResult(label_map=(0, 0, 0, 1, 1, 1), shape=(2, 3))
        second = SegmentationResult(label_map=(0, 0, 1, 1, 1, 1), shape=(2, 3))
        difference = between(first, second)
        assert difference.agreement == pytest.approx((2 / 3 + 3 / 4) / 2, abs=1e-6)
        assert difference.what == "16.7% of the pixels: cat IoU 0.67, dog IoU 0.75"
        swapped = SegmentationResult(label_map=(1, 1, 1, 0, 0, 0), shape=(2, 3))
        assert between(first, swapped, LABELS, ("dog", "cat", "cow")).agreement == 1

    def test_texts_agree_as_far_as_their_letters_do(self) -> None:
        difference = between(OCRResult(text=("ab", "cd")), OCRResult(text=("ab", "ce")))
        assert difference.agreement == pytest.approx(0.8)
        assert difference.what == "'ab cd' → 'ab ce'"


def dataset_of(folder: Path, truths: list[Truth]) -> Dataset:
    paths = [distinct(folder / f"{index}.png", index) for index in range(len(truths))]
    samples = tuple(Sample(path.name, path, truth) for path, truth in zip(paths, truths, strict=True))
    kind: Any = "classes" if isinstance(truths[0], int) else "pictures"
    return Dataset(folder, "test", kind, samples)


def said(label_id: int, score: float = 0.9) -> ClassifyResult:
    return ClassifyResult((label_id, (label_id + 1) % 3), (score, 1 - score), (LABELS[label_id], LABELS[label_id - 2]))


def scripted(dataset: Dataset, answers: list[Result | None], task: str = "classification", name: str = "x") -> Scripted:
    paths = [sample.path for sample in dataset.samples]
    return Scripted(task, dict(zip(paths, answers, strict=True)), LABELS, 9, name)


class TestCompare:
    def test_both_are_measured_and_the_pictures_come_worst_first(self, tmp_path: Path) -> None:
        dataset = dataset_of(tmp_path, [0, 1, 2, 1])
        first = scripted(dataset, [said(0), said(1), said(2), said(1)], name="one")
        second = scripted(dataset, [said(0), said(1, 0.8), said(0), said(1)], name="two")
        done: list[int] = []
        comparison = compare(first, second, dataset, progress=done.append)
        assert (comparison.first.metrics["top1"], comparison.second.metrics["top1"]) == (1, 0.75)
        assert comparison.difference["top1"] == -0.25
        assert [entry.picture for entry in comparison.pictures] == ["2.png", "1.png", "0.png", "3.png"]
        assert [entry.picture for entry in comparison.worst(9)] == ["2.png", "1.png"]
        assert comparison.agreement == pytest.approx(np.mean([0.1, 0.9, 1, 1]))
        assert done == [1, 2, 3, 4]
        plain = comparison.to_dict()
        assert plain["pictures"][0]["first"] == "cow"
        assert plain["pictures"][0]["changed"] is True
        assert plain["first"]["metrics"]["top1"] == 1

    def test_pictures_without_a_truth_are_enough(self, tmp_path: Path) -> None:
        dataset = dataset_of(tmp_path, [None, None, None])
        first = scripted(dataset, [said(0), said(1), None])
        comparison = compare(first, scripted(dataset, [said(0), said(2), said(0)]), dataset)
        assert (dict(comparison.first.metrics), comparison.difference) == ({}, {})
        assert comparison.agreement == pytest.approx((1 + 0.1) / 2)
        assert dict(comparison.first.failed) == {"2.png": "it is broken"}

    def test_models_of_two_tasks_are_not_compared(self, tmp_path: Path) -> None:
        dataset = dataset_of(tmp_path, [None])
        with pytest.raises(InvalidSetting, match="one is a model for classification, two for detection"):
            compare(scripted(dataset, [said(0)], name="one"), scripted(dataset, [seen()], "detection", "two"), dataset)

    @pytest.mark.parametrize("size", [(40, 60), (90, 1600)])
    def test_the_worst_are_drawn_side_by_side(self, tmp_path: Path, size: tuple[int, int]) -> None:
        dataset = dataset_of(tmp_path, [None, None])
        for index, sample in enumerate(dataset.samples):
            distinct(sample.path, index, size)
        subjects = (scripted(dataset, [said(0), said(1)]), scripted(dataset, [said(0), said(2)]))
        comparison = compare(*subjects, dataset)
        written = save_worst(tmp_path / "out", comparison, subjects, dataset, count=5)
        assert [path.name for path in written] == ["01-1.jpg"]
        picture = cv2.imread(str(written[0]))
        assert picture is not None
        wide = min(max(size[1], 320), 1280)
        assert picture.shape[1] == 2 * wide + 12
        high = round(size[0] * wide / size[1])
        drawn = picture[-high - 30 : -30].astype(int)  # without the line above; that below is the same for both
        assert np.abs(drawn[:, :wide] - drawn[:, -wide:]).max() > 50

    def test_a_folder_that_cannot_be_written_is_an_error(self, tmp_path: Path) -> None:
        dataset = dataset_of(tmp_path, [None])
        subjects = (scripted(dataset, [said(0)]), scripted(dataset, [said(1)]))
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidSetting, match="--save-worst"):
            save_worst(tmp_path / "file", compare(*subjects, dataset), subjects, dataset)


def made_up(task: str, chart: Any, classes: int = 0) -> Report:
    keys = {"detection": "map50_95", "classification": "top1", "segmentation": "iou", "ocr": "cer"}
    scores = tuple(ClassScore(f"class $a_{i}$ 道", i, {keys[task]: i / classes}) for i in range(classes))
    return Report("m", "here", task, "/data", "test", 9, {"map50": 0.5}, scores, chart=chart)


CHARTS: dict[str, Callable[[int], Chart]] = {
    "detection": lambda n: Curves(np.linspace(0, 1, 101), {f"class {i}": np.linspace(1, 0, 101) for i in range(n)}),
    "classification": lambda n: Confusion(tuple(map(str, range(n))), np.eye(n, n + 1, 1, dtype=np.int64)),
    "segmentation": lambda n: Confusion(tuple(map(str, range(n))), np.eye(n, n + 1, dtype=np.int64)),
    "ocr": lambda n: LineErrors((0.0, 0.1, 2.0) * n, {("a", "b"): n, ("", " "): 1, ("好", "女"): 2}),
}


@pytest.mark.parametrize("task", CHARTS)
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_plots_of_few_and_many_classes_are_drawn_without_a_warning(tmp_path: Path, task: str, count: int) -> None:
    report = made_up(task, CHARTS[task](count), 0 if task == "ocr" else count)
    pictures = tuple(PictureDifference(f"{i}", i / 10, "x") for i in range(11 if count else 0))
    for name, found in (("one.png", report), ("two.png", Comparison(report, report, pictures))):
        save_plot(tmp_path / "new" / name, found)
        picture = cv2.imread(str(tmp_path / "new" / name))
        assert picture is not None
        assert min(picture.shape[:2]) > 400
        assert (picture < 128).mean() > 0.001  # something is drawn


@pytest.mark.parametrize(("name", "says"), [("a.gif", "must end in"), ("file/a.png", "--plot")])
def test_a_plot_that_cannot_be_written_is_an_error(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match=says):
        save_plot(tmp_path / name, made_up("ocr", CHARTS["ocr"](1)))
