"""The figures, against others' arithmetic written out here: average precision, confusion, IoU, edit distance; and how classes are
matched. The answers come from a script, so that every figure is known."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from visionpool.errors import InvalidSetting
from visionpool.results import ClassifyResult, DetectionResult, Mask, OCRResult, Result, SegmentationResult
from visionpool_server.evaluation import Dataset, Report, Settings, evaluate
from visionpool_server.evaluation.classes import match_classes
from visionpool_server.evaluation.report import Confusion, Curves, LineErrors
from visionpool_server.evaluation.run import USUAL
from visionpool_server.evaluation.truth import Kind, MaskFile, Objects, Sample, Truth
from visionpool_server.families import Options
from visionpool_server.imaging.masks import png_of, rle_of

from tests.evaluation_data import Scripted, distinct

Boxes = NDArray[np.float64]
NAMES = {1: "cat", 2: "dog", 3: "tv monitor"}
LABELS = ("dog", "TV_monitor", "Cat", "cow")  # ids 0..3 of the model are 2, 3, 1 and nothing


def objects(boxes: Sequence[Sequence[float]], ids: Sequence[int], crowds: Sequence[bool] = ()) -> Objects:
    array = np.array(boxes, np.float64).reshape(-1, 4)
    areas = (array[:, 2:] - array[:, :2]).prod(axis=1)
    return Objects(array, tuple(ids), tuple(crowds) or (False,) * len(ids), tuple(areas.tolist()), (40, 60))


def found(boxes: Sequence[Sequence[float]], scores: Sequence[float], ids: Sequence[int]) -> DetectionResult:
    return DetectionResult(tuple((a, b, c, d) for a, b, c, d in boxes), tuple(scores), tuple(ids))


def report(
    folder: Path,
    kind: Kind,
    pairs: Sequence[tuple[Truth, Result | None]],
    settings: Settings = USUAL,
    *,
    names: dict[int, str] | None = None,
    labels: Sequence[str] = (),
    count: int | None = None,
) -> Report:
    """The report of a model that answers so to pictures of which that is true."""
    tasks = {"boxes": "detection", "classes": "classification", "masks": "segmentation", "text": "ocr"}
    paths = [distinct(folder / f"{index}.png", index) for index in range(len(pairs))]
    samples = [Sample(path.name, path, truth) for path, (truth, _) in zip(paths, pairs, strict=True)]
    script = {path: answer for path, (_, answer) in zip(paths, pairs, strict=True)}
    subject = Scripted(tasks[kind], script, labels, count)
    return evaluate(subject, Dataset(folder, "test", kind, tuple(samples), names or {}), settings)


# -- detection -----------------------------------------------------------------------------------------------


def overlaps(one: Boxes, other: Boxes) -> Boxes:
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None] - shared), np.float64)


def average_precision(pairs: Sequence[tuple[Objects, DetectionResult]], class_id: int, overlap: float) -> float:
    """COCO's, from its paper's words: each detection, best first, takes the free object it overlaps most, if enough; the
    precision at each of 101 recalls is the best of this recall or a higher one."""
    scored, objects_of_class = [], 0
    for truth, result in pairs:
        boxes = truth.boxes[np.array(truth.class_ids) == class_id]
        objects_of_class += len(boxes)
        free = np.ones(len(boxes), bool)
        mine = [i for i, label_id in enumerate(result.label_ids) if label_id == class_id]
        for i in sorted(mine, key=lambda i: -result.scores[i])[:100]:
            iou = overlaps(np.array([result.boxes[i]]), boxes)[0] * free if len(boxes) else np.zeros(0)
            hit = bool(len(iou)) and iou.max() >= overlap
            if hit:
                free[iou.argmax()] = False
            scored.append((result.scores[i], hit))
    hits = np.cumsum([hit for _, hit in sorted(scored, key=lambda item: -item[0])])
    recall, precision = hits / objects_of_class, hits / np.arange(1, len(hits) + 1)
    return float(np.mean([precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]))


def random_pairs(count: int, seed: int) -> list[tuple[Objects, DetectionResult]]:
    """Objects of three classes, and detections near some of them and elsewhere."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        corners = random.uniform(0, 100, (6, 2))
        boxes = np.concatenate([corners, corners + random.uniform(10, 60, (6, 2))], axis=1)
        ids = random.integers(0, 3, 6)
        near = boxes[random.integers(0, 6, 12)] + random.normal(0, 4, (12, 4))
        scores: list[float] = (random.permutation(12) / 12 + random.random()).tolist()
        said = found(near.tolist(), scores, random.integers(0, 3, 12).tolist())
        pairs.append((objects(boxes.tolist(), ids.tolist()), said))
    return pairs


class TestDetection:
    @pytest.mark.parametrize("seed", range(4))
    def test_average_precision_is_what_the_paper_says(self, tmp_path: Path, seed: int) -> None:
        pairs = random_pairs(12, seed)
        measured = report(tmp_path, "boxes", pairs, count=3)
        expected = {
            overlap: [average_precision(pairs, class_id, overlap) for class_id in range(3)]
            for overlap in np.arange(0.5, 0.96, 0.05)
        }
        assert measured.metrics["map50"] == pytest.approx(np.mean(expected[0.5]), abs=1e-9)
        assert measured.metrics["map50_95"] == pytest.approx(np.mean(list(expected.values())), abs=1e-9)
        by_class = {entry.name: entry.metrics["map50"] for entry in measured.classes}
        assert by_class == pytest.approx(dict(zip("012", expected[0.5], strict=True)))
        assert isinstance(measured.chart, Curves)
        assert float(np.mean(measured.chart.precision["1"])) == pytest.approx(expected[0.5][1])

    def test_the_model_is_asked_for_everything_unless_the_caller_says_otherwise(self, tmp_path: Path) -> None:
        path = distinct(tmp_path / "a.png", 0)
        dataset = Dataset(tmp_path, "test", "boxes", (Sample("a", path, objects([[0, 0, 9, 9]], [0])),))
        subject = Scripted("detection", {path: DetectionResult()}, class_count=1)
        assert evaluate(subject, dataset).metrics["map50"] == 0
        evaluate(subject, dataset, Settings(Options(score_threshold=0.5)))
        first, second = (options.given() for options in subject.asked)
        assert first == {"score_threshold": 0.001, "max_detections": 300, "compact": True}
        assert second == {**first, "score_threshold": 0.5}

    def test_classes_are_matched_by_name_whatever_their_ids(self, tmp_path: Path) -> None:
        box = [0, 0, 20, 20]
        pairs = [
            (objects([box], [1]), found([box], [0.9], [2])),
            (objects([box], [3]), found([box, [30, 0, 50, 20]], [0.9, 0.95], [1, 3])),
        ]
        measured = report(tmp_path, "boxes", pairs, names=NAMES, labels=LABELS)
        assert measured.matched_by == "name"
        assert {entry.name: entry.metrics["map50_95"] for entry in measured.classes} == pytest.approx(
            {"cat": 1.0, "tv monitor": 1.0}
        )
        assert "1 classes without an object in these pictures are left out of the means" in measured.notes
        assert any("cow" in note and "not counted" in note for note in measured.notes)

    def test_what_a_crowd_hides_is_neither_right_nor_wrong(self, tmp_path: Path) -> None:
        truth = objects([[0, 0, 20, 20], [30, 0, 60, 40]], [0, 0], [False, True])
        inside = [[31.0, 1.0, 40.0, 30.0], [40.0, 1.0, 50.0, 30.0]]
        pairs = [(truth, found([*inside, [0, 0, 20, 20]], [0.9, 0.8, 0.7], [0, 0, 0]))]
        assert report(tmp_path, "boxes", pairs, count=1).metrics["map50_95"] == pytest.approx(1)

    def test_masks_are_measured_where_both_sides_have_them(self, tmp_path: Path) -> None:
        """A triangle in a box: a mask of the whole box overlaps it by about a half."""
        outline = [[0.0, 0.0, 20.0, 0.0, 20.0, 20.0]]
        truth = Objects(np.array([[0.0, 0.0, 20.0, 20.0]]), (0,), (False,), (200.0,), (40, 60), (outline,))
        whole = np.zeros((40, 60), np.uint8)
        whole[:20, :20] = 1
        box = found([[0, 0, 20, 20]], [0.9], [0])
        for mask, expected in ((whole, 0.0), (np.triu(whole), 1.0)):
            masks = (Mask((), (40, 60), rle_of(mask)),)
            answer = DetectionResult(box.boxes, box.scores, box.label_ids, masks=masks, contain_masks=True)
            metrics = report(tmp_path, "boxes", [(truth, answer)], count=1).metrics
            assert metrics["map50_95"] == pytest.approx(1)
            iou = float((np.triu(whole) & mask).sum() / mask.sum())
            assert (iou > 0.55) == bool(expected)
            assert metrics["mask_map50_95"] == pytest.approx(expected, abs=0.11)

    def test_a_model_of_another_task_is_refused(self, tmp_path: Path) -> None:
        path = distinct(tmp_path / "a.png", 0)
        dataset = Dataset(tmp_path, "yolo", "boxes", (Sample("a", path, objects([], [])),))
        with pytest.raises(
            InvalidSetting, match=r"scripted is a model for ocr, and .* \(read as yolo\) is for detection"
        ):
            evaluate(Scripted("ocr", {}), dataset)


# -- classification ------------------------------------------------------------------------------------------


def ranked(*ids: int) -> ClassifyResult:
    return ClassifyResult(ids, tuple(0.5**i for i in range(len(ids))))


class TestClassification:
    def test_top_1_top_5_and_what_is_taken_for_what(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        truth = random.integers(0, 9, 60)
        answers = [random.permutation(9)[:7].tolist() for _ in truth]
        pairs = [(int(t), ranked(*a)) for t, a in zip(truth, answers, strict=True)]
        measured = report(tmp_path, "classes", pairs, count=9)
        top1 = np.mean([a[0] == t for t, a in zip(truth, answers, strict=True)])
        top5 = np.mean([t in a[:5] for t, a in zip(truth, answers, strict=True)])
        assert dict(measured.metrics) == pytest.approx({"top1": top1, "top5": top5})
        expected = np.zeros((9, 10), int)
        np.add.at(expected, (truth, [a[0] for a in answers]), 1)
        assert isinstance(measured.chart, Confusion)
        assert measured.chart.counts.tolist() == expected.tolist()
        for entry in measured.classes:
            rows = truth == int(entry.name)
            assert entry.count == rows.sum()
            assert entry.metrics["top1"] == pytest.approx(expected[int(entry.name), int(entry.name)] / rows.sum())

    def test_a_class_that_only_the_model_has_is_a_mistake_and_one_that_only_the_data_has_is_left_out(
        self, tmp_path: Path
    ) -> None:
        pairs = [(1, ranked(2)), (1, ranked(3)), (2, ranked(1)), (9, ranked(0))]
        measured = report(tmp_path, "classes", pairs, names={**NAMES, 9: "horse"}, labels=LABELS)
        assert measured.metrics["top1"] == pytest.approx(1 / 3)
        assert "1 pictures are of classes that the model does not have, and left out" in measured.notes
        assert {"truth": "cat", "predicted": None, "count": 1} in measured.to_dict()["confusion"]
        assert {"truth": "dog", "predicted": "tv monitor", "count": 1} in measured.to_dict()["confusion"]
        assert measured.to_dict()["mistakes"] == [
            {"picture": "1.png", "truth": "cat", "predicted": None, "error": 1.0},
            {"picture": "2.png", "truth": "dog", "predicted": "tv monitor", "error": 1.0},
        ]

    def test_of_five_classes_top_5_says_nothing(self, tmp_path: Path) -> None:
        assert dict(report(tmp_path, "classes", [(0, ranked(1, 0))], count=5).metrics) == {"top1": 0.0}

    def test_pictures_that_cannot_be_read_are_told_and_count_nowhere(self, tmp_path: Path) -> None:
        measured = report(tmp_path, "classes", [(0, ranked(0)), (1, None)], count=9)
        assert (measured.pictures, measured.metrics["top1"], dict(measured.failed)) == (1, 1, {"1.png": "it is broken"})
        assert "1 pictures could not be read, and count nowhere; the first is 1.png: it is broken" in measured.notes

    def test_where_no_picture_can_be_read_there_is_nothing_to_report(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="none of the 2 pictures could be read: it is broken"):
            report(tmp_path, "classes", [(0, None), (1, None)], count=9)


# -- segmentation --------------------------------------------------------------------------------------------


class TestSegmentation:
    @pytest.mark.parametrize("compact", [False, True])
    def test_iou_is_over_the_pixels_of_all_pictures(self, tmp_path: Path, compact: bool) -> None:
        random = np.random.default_rng(3)
        truths = [random.choice([0, 1, 2, 255], (12, 9 + i)) for i in range(3)]
        saids = [np.where(random.random(t.shape) < 0.7, t % 255, random.integers(0, 3, t.shape)) for t in truths]
        measured = report(tmp_path, "masks", masks(tmp_path, truths, saids, compact=compact), count=3)
        truth, said = (np.concatenate([m.ravel() for m in maps]) for maps in (truths, saids))
        truth, said = truth[truth != 255], said[truth != 255]
        ious = [((truth == c) & (said == c)).sum() / ((truth == c) | (said == c)).sum() for c in range(3)]
        accuracies = [((truth == c) & (said == c)).sum() / (truth == c).sum() for c in range(3)]
        assert dict(measured.metrics) == pytest.approx(
            {"miou": np.mean(ious), "pixel_accuracy": (truth == said).mean(), "mean_accuracy": np.mean(accuracies)}
        )
        assert [entry.metrics["iou"] for entry in measured.classes] == pytest.approx(ious)
        assert [entry.count for entry in measured.classes] == [(truth == c).sum() for c in range(3)]

    def test_names_match_classes_and_what_is_no_class_is_told(self, tmp_path: Path) -> None:
        truths, saids = [np.array([[1, 2, 3, 9]])], [np.array([[2, 0, 3, 0]])]
        pairs = masks(tmp_path, truths, saids)
        measured = report(tmp_path, "masks", pairs, names=NAMES, labels=LABELS)
        assert {entry.name: entry.metrics["iou"] for entry in measured.classes} == {"cat": 1, "dog": 1, "tv monitor": 0}
        assert measured.metrics["pixel_accuracy"] == pytest.approx(2 / 3)
        assert any("1 pixels of the masks" in note and "(9)" in note for note in measured.notes)

    def test_another_value_may_be_the_one_that_does_not_count(self, tmp_path: Path) -> None:
        pairs = masks(tmp_path, [np.array([[0, 0, 1]])], [np.array([[1, 1, 1]])])
        assert report(tmp_path, "masks", pairs, Settings(ignored=0), count=2).metrics["pixel_accuracy"] == 1

    def test_a_mask_of_another_size_than_the_picture_is_refused(self, tmp_path: Path) -> None:
        pairs = masks(tmp_path, [np.zeros((2, 3), int)], [np.zeros((3, 2), int)])
        with pytest.raises(InvalidSetting, match=r"0\.png has 2x3 pixels, its mask 3x2"):
            report(tmp_path, "masks", pairs, count=2)


def masks(
    folder: Path, truths: Sequence[NDArray[np.int_]], saids: Sequence[NDArray[np.int_]], *, compact: bool = False
) -> list[tuple[Truth, Result | None]]:
    pairs: list[tuple[Truth, Result | None]] = []
    for index, (truth, said) in enumerate(zip(truths, saids, strict=True)):
        path = folder / f"mask_{index}.png"
        Image.fromarray(truth.astype(np.uint8)).save(path)
        shape = (said.shape[0], said.shape[1])
        plain = SegmentationResult(label_map=tuple(said.ravel().tolist()), shape=shape)
        packed = SegmentationResult(shape=shape, label_map_png=png_of(said))
        pairs.append((MaskFile(path), packed if compact else plain))
    return pairs


# -- text ----------------------------------------------------------------------------------------------------


def edits(wanted: str, said: str) -> int:
    """Wagner and Fischer's table."""
    row = list(range(len(said) + 1))
    for i, letter in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return row[-1]


class TestText:
    LINES = (("Hello, world", "Hello world"), ("42", "42"), ("kitten", "sitting"), ("abc", ""), ("Grüße", "GRUSSE"))

    def test_the_error_rate_is_edits_over_length(self, tmp_path: Path) -> None:
        pairs = [(truth, OCRResult(text=tuple(said.split()))) for truth, said in self.LINES]
        measured = report(tmp_path, "text", pairs)
        wrong = [edits(truth, said) for truth, said in self.LINES]
        assert measured.metrics["cer"] == pytest.approx(sum(wrong) / sum(len(truth) for truth, _ in self.LINES))
        assert measured.metrics["line_accuracy"] == pytest.approx(1 / 5)
        assert isinstance(measured.chart, LineErrors)
        assert measured.chart.rates == pytest.approx([w / len(t) for w, (t, _) in zip(wrong, self.LINES, strict=True)])
        assert measured.chart.characters["k", "s"] == 1
        assert measured.chart.characters[",", ""] == 1
        errors = [(m.truth, m.error) for m in measured.mistakes]
        assert errors == sorted(
            [(t, w / len(t)) for w, (t, _) in zip(wrong, self.LINES, strict=True) if w], key=lambda e: -e[1]
        )

    def test_case_and_spaces_are_left_out_where_that_is_asked_for(self, tmp_path: Path) -> None:
        pairs = [("A b C", OCRResult(text=("aB", "c"))), ("x", OCRResult(text=("x",)))]
        for settings, right in (
            (Settings(), 1),
            (Settings(ignore_case=True), 1),
            (Settings(ignore_case=True, ignore_spaces=True), 2),
        ):
            assert report(tmp_path, "text", pairs, settings).metrics["line_accuracy"] == right / 2

    def test_both_ways_to_write_an_accent_are_the_same(self, tmp_path: Path) -> None:
        pairs = [(unicodedata.normalize("NFD", "é"), OCRResult(text=("é",)))]
        assert report(tmp_path, "text", pairs).metrics["cer"] == 0


# -- classes -------------------------------------------------------------------------------------------------


class TestMatching:
    def test_cocos_ids_are_taken_in_order_by_a_model_of_80_classes(self) -> None:
        names = {class_id: f"c{class_id}" for class_id in (1, 2, 5, 90)}
        matched = match_classes(names, list(names), (), 4)
        assert dict(matched.to_dataset) == {0: 1, 1: 2, 2: 5, 3: 90}
        assert matched.by == "number"
        assert "the data set's 4 classes (1 to 90) are taken in the order of their ids" in matched.notes

    def test_they_stay_what_they_are_for_a_model_of_91(self) -> None:
        names = {class_id: f"c{class_id}" for class_id in (1, 2, 5, 90)}
        assert dict(match_classes(names, list(names), (), 91).to_dataset) == {1: 1, 2: 2, 5: 5, 90: 90}

    def test_names_that_are_not_the_same_are_reported_on_both_sides(self) -> None:
        matched = match_classes({0: "person", 1: "tv"}, [0, 1], ("person", "tvmonitor"), 2)
        assert dict(matched.to_dataset) == {0: 0}
        assert "1 classes of the data set are none of the model's, and left out: tv" in matched.notes
        assert any("tvmonitor" in note and "--by-index" in note for note in matched.notes)
        by_index = match_classes({0: "person", 1: "tv"}, [0, 1], ("person", "tvmonitor"), 2, by_index=True)
        assert (dict(by_index.to_dataset), dict(by_index.names)) == ({0: 0, 1: 1}, {0: "person", 1: "tv"})

    def test_no_name_in_common_is_an_error(self) -> None:
        with pytest.raises(InvalidSetting, match=r"\(a, b\) is one of the model's \(x, y\).*--by-index"):
            match_classes({0: "a", 1: "b"}, [0, 1], ("x", "y"), 2)

    @pytest.mark.parametrize("name", ["tench, Tinca tinca", "tench", "Tinca Tinca", "n01440764"])
    def test_imagenets_ids_and_synonyms_are_names(self, name: str) -> None:
        labels = ("n01440764 tench, Tinca tinca", "n01443537 goldfish")
        assert dict(match_classes({5: name, 6: "goldfish"}, [5, 6], labels, 2).to_dataset) == {0: 5, 1: 6}

    def test_of_namesakes_the_one_of_the_same_number_is_meant(self) -> None:
        names = {0: "crane", 1: "dog", 2: "crane"}
        assert dict(match_classes(names, [0, 1, 2], ("crane", "dog", "crane"), 3).to_dataset) == {0: 0, 1: 1, 2: 2}

    def test_classes_beyond_the_models_are_left_out_and_told(self) -> None:
        matched = match_classes({}, [0, 1, 7], (), 3)
        assert sorted(matched.names) == [0, 1, 2]
        assert "1 classes of the data set are beyond the model's 3, and left out: 7" in matched.notes
