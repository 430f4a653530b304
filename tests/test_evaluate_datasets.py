"""Reading data sets: each format is recognised by what is there, and means what its own tools take it for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scenes import CLASS_NAMES
from visionpool.errors import InvalidSetting
from visionpool_server.evaluation import Dataset, read_dataset
from visionpool_server.evaluation.datasets import FORMATS
from visionpool_server.evaluation.datasets.masks import read_mask
from visionpool_server.evaluation.truth import MaskFile, Objects

from tests.evaluation_data import COCO_IDS, distinct, write_coco, write_digits, write_lines, write_masks, write_yolo

FEW = range(3)


def objects(dataset: Dataset) -> list[Objects]:
    found = [sample.truth for sample in dataset.samples]
    assert all(isinstance(truth, Objects) for truth in found)
    return [truth for truth in found if isinstance(truth, Objects)]


def classes(dataset: Dataset) -> dict[str, object]:
    return {sample.name: sample.truth for sample in dataset.samples}


class TestCoco:
    @pytest.mark.parametrize("given", ["", "annotations/instances_val.json"])
    def test_boxes_are_corners_and_names_go_with_ids(self, tmp_path: Path, given: str) -> None:
        root = write_coco(tmp_path / "set", FEW)
        dataset = read_dataset(root / given)
        assert (dataset.format, dataset.kind, len(dataset.samples)) == ("coco", "boxes", 3)
        assert dict(dataset.names) == dict(zip(COCO_IDS, CLASS_NAMES, strict=True))
        written = json.loads((root / "annotations/instances_val.json").read_text())["annotations"]
        boxes = np.array([entry["bbox"] for entry in written])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(np.concatenate([truth.boxes for truth in objects(dataset)]), boxes)
        assert sum((truth.class_ids for truth in objects(dataset)), ()) == tuple(e["category_id"] for e in written)

    def test_the_validation_part_is_taken_and_captions_are_not(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, FEW)
        for name in ("instances_train.json", "captions_val.json"):
            (root / "annotations" / name).write_text("{}")
        assert len(read_dataset(root).samples) == 3

    def test_several_annotations_are_named(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, FEW)
        (root / "annotations/instances_val.json").rename(root / "annotations/instances_a.json")
        (root / "annotations/instances_b.json").write_text("{}")
        with pytest.raises(InvalidSetting, match=r"There: instances_a\.json, instances_b\.json"):
            read_dataset(root)

    def test_pictures_that_are_not_there_are_counted_and_told(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, FEW)
        (root / "images/01.png").unlink()
        dataset = read_dataset(root)
        assert len(dataset.samples) == 2
        assert dataset.notes == ("1 of the 3 pictures listed are not there: 01.png",)

    def test_pictures_elsewhere_are_found_where_images_says(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path / "set", FEW)
        (root / "images").rename(tmp_path / "elsewhere")
        with pytest.raises(InvalidSetting, match=r"none of them is there.*--images"):
            read_dataset(root)
        assert len(read_dataset(root, images=tmp_path / "elsewhere").samples) == 3

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("[1", "cannot be read as JSON"),
            ("[]", "has no images and no annotations and no categories"),
            ('{"images": [], "annotations": 3, "categories": []}', "has no annotations"),
            ('{"images": [{}], "annotations": [], "categories": []}', "'file_name' is missing"),
            ('{"images": [], "annotations": [], "categories": [{"id": "x", "name": "y"}]}', "invalid literal"),
            (
                '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": [1, 2]}], "categories": []}',
                "not as COCO",
            ),
            ('{"images": [], "annotations": [], "categories": []}', "lists 0 pictures"),
        ],
    )
    def test_a_file_that_is_none_says_what_was_expected(self, tmp_path: Path, text: str, says: str) -> None:
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InvalidSetting, match=says):
            read_dataset(tmp_path / "a.json")


class TestYolo:
    def test_it_says_the_same_as_coco(self, tmp_path: Path) -> None:
        coco = read_dataset(write_coco(tmp_path / "coco", FEW, range(8)))
        yolo = read_dataset(write_yolo(tmp_path / "yolo", FEW))
        assert (yolo.format, dict(yolo.names)) == ("yolo", dict(coco.names))
        for ours, theirs in zip(objects(yolo), objects(coco), strict=True):
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
            np.testing.assert_allclose(ours.areas, theirs.areas, atol=0.1)
            assert (ours.class_ids, ours.size) == (theirs.class_ids, theirs.size)

    def test_an_outline_gives_its_box_and_its_outline(self, tmp_path: Path) -> None:
        write_yolo(tmp_path, range(1), None)
        (tmp_path / "labels/00.txt").write_text("2 0.1 0.2 0.5 0.2 0.5 0.6\n")
        truth = objects(read_dataset(tmp_path))[0]
        height, width = truth.size
        scale = np.array([width, height] * 3)
        np.testing.assert_allclose(truth.boxes[0], np.array([0.1, 0.2, 0.5, 0.6]) * scale[:4])
        np.testing.assert_allclose(truth.segments[0][0], np.array([0.1, 0.2, 0.5, 0.2, 0.5, 0.6]) * scale)

    def test_a_picture_without_a_file_of_labels_has_no_objects(self, tmp_path: Path) -> None:
        write_yolo(tmp_path, FEW)
        (tmp_path / "labels/01.txt").unlink()
        assert [bool(truth.class_ids) for truth in objects(read_dataset(tmp_path))] == [True, False, True]

    @pytest.mark.parametrize("layout", ["images/val", "valid/images"])
    def test_the_validation_part_of_a_split_set_is_taken(self, tmp_path: Path, layout: str) -> None:
        for part, seeds in ((layout, range(2)), (layout.replace("valid", "train").replace("val", "train"), FEW)):
            made = write_yolo(tmp_path / "made", seeds, None)
            for kind in ("images", "labels"):
                target = tmp_path / "set" / part.replace("images", kind)
                target.parent.mkdir(parents=True, exist_ok=True)
                (made / kind).rename(target)
        dataset = read_dataset(tmp_path / "set")
        assert len(dataset.samples) == 2
        assert dataset.notes == (f"of its parts, {layout} was taken",)
        assert all(truth.class_ids for truth in objects(dataset))

    @pytest.mark.parametrize("given", ["", "data.yaml"])
    def test_a_data_yaml_says_where_and_what(self, tmp_path: Path, given: str) -> None:
        write_yolo(tmp_path, FEW, None)
        for kind in ("images", "labels"):
            (tmp_path / kind).rename(tmp_path / "x")
            (tmp_path / kind).mkdir()
            (tmp_path / "x").rename(tmp_path / kind / "mine")
        (tmp_path / "data.yaml").write_text("path: .\nval: images/mine\nnames: [a, b]\n")
        dataset = read_dataset(tmp_path / given)
        assert (len(dataset.samples), dict(dataset.names)) == (3, {0: "a", 1: "b"})

    def test_a_list_of_classes_beside_it_names_them(self, tmp_path: Path) -> None:
        write_yolo(tmp_path, FEW, None)
        (tmp_path / "classes.txt").write_text("\n".join(CLASS_NAMES))
        assert tuple(read_dataset(tmp_path).names.values()) == CLASS_NAMES

    @pytest.mark.parametrize(
        "line", ["1 2 3", "a 0.5 0.5 0.1 0.1", "1 0.5 nan 0.1 0.1", "1.5 0.5 0.5 0.1 0.1", "-1 0 0 1 1"]
    )
    def test_a_line_that_is_no_label_is_named(self, tmp_path: Path, line: str) -> None:
        write_yolo(tmp_path, range(1))
        (tmp_path / "labels/00.txt").write_text(f"\n{line}\n")
        with pytest.raises(InvalidSetting, match=r"00\.txt, line 2: .* is no label"):
            read_dataset(tmp_path)

    def test_pictures_without_any_label_are_refused(self, tmp_path: Path) -> None:
        write_yolo(tmp_path, range(1))
        (tmp_path / "labels/00.txt").unlink()
        with pytest.raises(InvalidSetting, match=r"no labels for any of the 1 pictures.*labels/00\.txt"):
            read_dataset(tmp_path)


class TestClasses:
    def test_folders_are_classes_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for index, name in enumerate(("cat/b.png", "cat/a.png", "bird/deep/c.png", "empty/x.txt")):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            distinct(path, index) if path.suffix == ".png" else path.write_text("")
        dataset = read_dataset(tmp_path)
        assert (dataset.format, dict(dataset.names)) == ("folders", {0: "bird", 1: "cat"})
        assert classes(dataset) == {"bird/deep/c.png": 0, "cat/a.png": 1, "cat/b.png": 1}

    def test_folders_that_are_numbers_are_these(self, tmp_path: Path) -> None:
        root, shown = write_digits(tmp_path, 12)
        dataset = read_dataset(root)
        assert not dataset.names
        assert {name.rpartition("/")[2]: said for name, said in classes(dataset).items()} == {
            f"{index:03d}.png": label for index, label in enumerate(shown)
        }

    @pytest.mark.parametrize(
        ("name", "text", "names", "expected"),
        [
            ("labels.csv", "file,index,synset\na.png,3,n1\nb.png,5,n2\n", {}, [3, 5]),
            ("mine.csv", "filename;label\na.png;dog\nb.png;cat\n", {0: "cat", 1: "dog"}, [1, 0]),
            ("mine.tsv", "image\tlabel\na.png\t7\nb.png\t0\n", {}, [7, 0]),
            ("val_list.txt", "a.png 4\nb.png 2\n", {}, [4, 2]),
        ],
    )
    def test_lists_of_classes(
        self, tmp_path: Path, name: str, text: str, names: dict[int, str], expected: list[int]
    ) -> None:
        for index, picture in enumerate(("a.png", "b.png")):
            distinct(tmp_path / picture, index)
        (tmp_path / name).write_text(text)
        dataset = read_dataset(tmp_path / name)
        assert (dict(dataset.names), list(classes(dataset).values())) == (names, expected)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("a,b\n1,2\n", "has the columns a, b"),
            ("", "has the columns none"),
            ("file,index\na.png,x\n", "'x' is no number"),
            ("file,index\na.png,1\n", "lists 1 pictures, and none"),
            (b"\xff\xfe\xfa", "cannot be read"),
        ],
    )
    def test_a_table_that_is_none_says_what_was_expected(self, tmp_path: Path, text: str | bytes, says: str) -> None:
        (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InvalidSetting, match=says):
            read_dataset(tmp_path / "a.csv")


class TestMasks:
    ids = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)

    @pytest.mark.parametrize("palette", [False, True])
    def test_grey_and_palette_masks_hold_class_ids(self, tmp_path: Path, palette: bool) -> None:
        dataset = read_dataset(write_masks(tmp_path, {"a": self.ids}, palette=palette))
        assert (dataset.format, dataset.kind) == ("masks", "masks")
        truth = dataset.samples[0].truth
        assert isinstance(truth, MaskFile)
        assert read_mask(truth).tolist() == self.ids.tolist()

    def test_masks_of_16_bits_and_grey_saved_as_colours(self, tmp_path: Path) -> None:
        wide = self.ids.astype(np.uint16) * 100
        grey = np.repeat(self.ids[..., None], 3, axis=2)
        dataset = read_dataset(write_masks(tmp_path, {"a": wide, "b": grey}))
        read = [read_mask(s.truth).tolist() for s in dataset.samples if isinstance(s.truth, MaskFile)]
        assert read == [wide.tolist(), self.ids.tolist()]

    def test_white_masks_are_of_class_1(self, tmp_path: Path) -> None:
        dataset = read_dataset(write_masks(tmp_path, {"a": np.array([[0, 255]], np.uint8)}))
        assert "taken for the classes 0 and 1" in dataset.notes[0]
        truth = dataset.samples[0].truth
        assert isinstance(truth, MaskFile)
        assert read_mask(truth).tolist() == [[0, 1]]

    def test_a_mask_in_colours_is_refused(self, tmp_path: Path) -> None:
        colours = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
        with pytest.raises(InvalidSetting, match="in colours"):
            read_dataset(write_masks(tmp_path, {"a": colours}))

    def test_pictures_without_a_mask_are_counted(self, tmp_path: Path) -> None:
        root = write_masks(tmp_path, {"a": self.ids, "b": self.ids})
        (root / "masks/a.png").unlink()
        dataset = read_dataset(root)
        assert (len(dataset.samples), dataset.notes) == (1, ("1 pictures have no mask: a.png",))

    def test_a_list_of_pairs(self, tmp_path: Path) -> None:
        root = write_masks(tmp_path, {"a": self.ids, "b": self.ids})
        (root / "val.txt").write_text("images/b.png masks/b.png\n")
        assert [sample.name for sample in read_dataset(root / "val.txt").samples] == ["images/b.png"]


class TestText:
    def test_paddles_list_of_lines(self, tmp_path: Path) -> None:
        lines = {"word_1.png": "Hello, world", "sub/word_2.png": "Grüße\t2"}
        root = write_lines(tmp_path, lines)
        for given in (root, root / "rec_gt.txt"):
            dataset = read_dataset(given)
            assert (dataset.format, dataset.kind, classes(dataset)) == ("text", "text", lines)

    def test_lines_without_a_tab_are_none(self, tmp_path: Path) -> None:
        write_lines(tmp_path, {"a.png": "x"})
        (tmp_path / "rec_gt.txt").write_text("a.png\tx\nb.png x\n")
        with pytest.raises(InvalidSetting, match="no list of lines of text"):
            read_dataset(tmp_path)


def test_pictures_alone_are_a_data_set_of_no_truth(tmp_path: Path) -> None:
    distinct(tmp_path / "a.png", 0)
    dataset = read_dataset(tmp_path)
    assert (dataset.format, dataset.kind, classes(dataset)) == ("pictures", "pictures", {"a.png": None})


def test_what_is_no_data_set_says_what_all_would_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="no data set that is known here") as caught:
        read_dataset(tmp_path)
    assert caught.value.hint is not None
    assert all(known.expected in caught.value.hint for known in FORMATS.values())


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_is_forced_on_an_empty_folder_is_one_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidSetting):
        read_dataset(tmp_path, name)


@pytest.mark.parametrize(("given", "says"), [("nothing", "does not exist"), (".", "unknown format 'voc'")])
def test_a_path_or_format_that_is_none(tmp_path: Path, given: str, says: str) -> None:
    with pytest.raises(InvalidSetting, match=says):
        read_dataset(tmp_path / given, "voc")
