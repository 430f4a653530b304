"""PP-OCR's recognisers (CRNN and SVTR, versions 1 to 5): the text of one line."""

from __future__ import annotations

from collections.abc import Sequence

from visionpool.errors import InvalidModel
from visionpool.results import OCRResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    PictureFamily,
    Tensors,
    image_input,
    picture_shape,
)
from visionpool_server.families.ctc import best_path
from visionpool_server.imaging.recipe import Arithmetic, Geometry, Recipe
from visionpool_server.imaging.text_lines import WIDTHS, TextLine

ARITHMETIC = Arithmetic(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), channels="bgr")
HEIGHT = 48  # of version 3 and later; 32 before
_KNOWN = {6625: "ppocr_keys_v1.txt", 97: "en_dict.txt", 18385: "ppocrv5_dict.txt", 15631: "ppocrv4_doc_dict.txt"}


class OcrRecognition(PictureFamily):
    """Output (N, steps, classes): class 0 is blank, then the characters of the dictionary, then perhaps the space.

    The spec's `labels` are the dictionary; the family's own are by class.
    """

    accepts: frozenset[str] = frozenset()

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, fixed = image_input(spec)
        shape = spec.inputs[self.image_input]
        known = shape[2] if picture_shape(shape).layout == "NCHW" else shape[1]
        size = fixed or spec.input_size
        height = known or (size[0] if size else HEIGHT)
        self.recipe = spec.recipe or Recipe((TextLine(height, (fixed[1],) if fixed else WIDTHS),), ARITHMETIC)
        texts = [name for name, shape in spec.outputs.items() if len(shape) == 3]
        if len(texts) != 1:
            raise InvalidModel(
                f"a recogniser of text gives (lines, steps, classes); this model gives {dict(spec.outputs)}"
            )
        self._output = texts[0]
        self.class_count = spec.outputs[self._output][2]
        self.labels = by_class(spec.labels, self.class_count)
        self.defaults = spec.defaults

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> OCRResult:  # noqa: ARG002  a protocol's signature
        """One line, the whole picture its box."""
        text, score = best_path(outputs[self._output], self.labels)
        return OCRResult(boxes=(whole(geometry.height, geometry.width),), text=(text,), rec_scores=(round(score, 6),))


def whole(height: int, width: int) -> tuple[int, ...]:
    """The box of a whole picture."""
    right, bottom = width - 1, height - 1
    return (0, 0, right, 0, right, bottom, 0, bottom)


def by_class(dictionary: Sequence[str], classes: int | None) -> tuple[str, ...]:
    """What each class stands for. PaddleOCR puts a blank before the dictionary, and most exports a space after it: the
    number of classes says whether. Raises InvalidModel for a dictionary that does not fit.
    """
    if not dictionary:
        usual = f", usually {_KNOWN[classes]}" if classes in _KNOWN else ""
        raise InvalidModel(
            "nothing says which characters the recogniser's classes are",
            hint=f"say labels: FILE in model.yaml, the dictionary that the model was exported with{usual}",
        )
    with_space = ("", *dictionary, " ")
    if classes in (None, len(with_space)):
        return with_space
    if classes == len(with_space) - 1:
        return with_space[:-1]
    usual = f"; for so many it is usually {_KNOWN[classes]}" if classes in _KNOWN else ""
    raise InvalidModel(
        f"the dictionary has {len(dictionary)} characters, and the model {classes} classes",
        hint=f"one class is blank, and one may be the space: it must have {classes - 1} or {classes - 2} lines{usual}",
    )
