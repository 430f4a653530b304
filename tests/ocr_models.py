"""An OCR pipeline of three tiny models that really read, in a script of their own, and pages written in it.

A page is dark; a line is a bright bar in which each letter is a cell of its own brightness, with a darker cell after it. The
lowest quarter of a bar is darker still, so that one can see which way up it is. Bars are 33 pixels high: between the corners
of the box around one lie 32, so that the recogniser, which takes lines of 32, gets its pixels as they are.

The detector knows bright pixels, the classifier whether the upper half of a bar is brighter than the lower, and the
recogniser which letter the brightest pixel of each 8 columns means. Its blank is 127.5, the very grey that pads lines: were
padding anything else, it would be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from tests.tiny_models import Graph

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB

LETTERS = "ABCDEF"
LEVELS = {letter: 0.66 + 0.06 * i for i, letter in enumerate(LETTERS)}  # of 1
BLANK, BETWEEN, FOOT, PAPER = 0.5, 0.56, 0.53, 0.1
CELL, HEIGHT, LINE = 24, 33, 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def detector(path: Path) -> Path:
    """(N, 3, H, W) as PP-OCR normalises it -> (N, 1, H, W), nearly 1 where a pixel is brighter than half."""
    graph = Graph()
    picture = graph.input("x", ["batch", 3, "height", "width"])
    steep = 80.0
    weights = np.array(_STD).reshape(1, 3, 1, 1) / 3 * steep
    shift = [steep * (np.mean(_MEAN) - BLANK)]
    bright = graph.add("Conv", picture, graph.constant(weights), graph.constant(shift), kernel_shape=[1, 1])
    graph.add("Sigmoid", bright, output="maps")
    graph.output("maps", ["batch", 1, "height", "width"])
    return graph.save(path)


def classifier(path: Path) -> Path:
    """(N, 3, 48, 192) -> (N, 2): whether the upper half of what is there is brighter, or the lower."""
    graph = Graph()
    picture = graph.input("x", ["batch", 3, 48, 192])
    weights = np.zeros((2, 3, 48, 1))
    weights[0, :, :24], weights[0, :, 24:] = 1, -1
    weights[1] = -weights[0]
    columns = graph.add("Conv", picture, graph.constant(weights), kernel_shape=[48, 1])  # (N, 2, 1, 192)
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", columns))
    graph.add("Softmax", graph.add("Mul", flat, graph.constant([5.0])), output="directions", axis=1)
    graph.output("directions", ["batch", 2])
    return graph.save(path)


def recogniser(path: Path, height: int = LINE) -> Path:
    """(N, 3, `height`, W) -> (N, W / 8, 7 classes), each step by the brightest pixel of its 8 columns."""
    graph = Graph()
    picture = graph.input("x", ["batch", 3, height, "width"])
    grey = graph.add("Conv", picture, graph.constant(np.full((1, 3, 1, 1), 1 / 6)), kernel_shape=[1, 1])
    share = graph.add("Add", grey, graph.constant([0.5]))  # of full brightness
    steps = graph.add("MaxPool", share, kernel_shape=[height, 8], strides=[height, 8])  # (N, 1, 1, W / 8)
    column = graph.add("Transpose", graph.add("Squeeze", steps, graph.constant([1], np.int64)), perm=[0, 2, 1])
    far = graph.add("Sub", column, graph.constant([[[BLANK, *LEVELS.values()]]]))
    logits = graph.add("Mul", graph.add("Mul", far, far), graph.constant([-4000.0]))
    graph.add("Softmax", logits, output="steps", axis=2)
    graph.output("steps", ["batch", "steps", 1 + len(LETTERS)])
    return graph.save(path)


def pipeline(folder: Path, *, classify: bool = True, **said: Any) -> Path:
    """A folder that is served as one pipeline with its steps; `said`: more of its model.yaml."""
    detector(folder / "tiny_det" / "model.onnx")
    if classify:
        classifier(folder / "tiny_cls" / "model.onnx")
    recogniser(folder / "tiny_rec" / "model.onnx")
    (folder / "tiny_dict.txt").write_text("".join(f"{letter}\n" for letter in LETTERS), encoding="utf-8")
    content = {"task": "ocr", "postprocess": {"unclip_ratio": 0.0, **said.pop("postprocess", {})}, **said}
    (folder / "model.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def bar(text: str) -> Pixels:
    """A line of text, (33, columns, 3)."""
    levels = [level for letter in text for level in (LEVELS[letter], BETWEEN)]
    line = np.repeat(np.array(levels), CELL)[None].repeat(HEIGHT, axis=0)
    line[-HEIGHT // 4 :] = FOOT
    return np.round(line * 255).astype(np.uint8)[:, :, None].repeat(3, axis=2)


def page(lines: Sequence[str], size: tuple[int, int] = (320, 640), left: int = 16) -> Pixels:
    """Lines of text one below the other; one that begins with - stands upside down. `size`: (height, width)."""
    out = np.full((*size, 3), round(PAPER * 255), np.uint8)
    for i, text in enumerate(lines):
        drawn = bar(text.removeprefix("-"))
        drawn = drawn[::-1, ::-1] if text.startswith("-") else drawn
        top = 16 + i * 48
        out[top : top + HEIGHT, left : left + drawn.shape[1]] = drawn
    return out


def written(seed: int, count: int | None = None) -> list[str]:
    """Some lines of some letters, others for each seed: its digits are the first line. A short one may be upside down."""
    random = np.random.default_rng(seed)
    lines = ["".join(LETTERS[(seed // 6**i) % 6] for i in range(4))]
    for _ in range(random.integers(0, 5) if count is None else count - 1):
        lines.append("".join(random.choice(list(LETTERS), random.integers(2, 12))))
    if len(lines) > 2:
        lines[1] = "-" + lines[1][:3]
    return lines


def text_of(lines: Sequence[str]) -> list[str]:
    return [line.removeprefix("-") for line in lines]


def png(pixels: NDArray[Any]) -> bytes:
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))
    assert done
    return data.tobytes()
