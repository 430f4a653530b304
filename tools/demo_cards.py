"""The model cards of the two demo models, filled with what training measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demo_scoring import HELD_OUT_SEEDS
from scenes import CLASS_NAMES


@dataclass(frozen=True)
class Training:
    """What a card says of one training: the file, its size in numbers, its length, the printed result."""

    path: Path
    parameters: int
    steps: int
    batch: int
    result: str

    @property
    def size(self) -> str:
        return f"{self.parameters:,} float32 parameters, {self.path.stat().st_size / 1e3:,.0f} kB"


def shapes_card(training: Training, scenes: int) -> str:
    return f"""\
# shapes

A small detector of flat shapes: {", ".join(CLASS_NAMES)}.
Made by this project so that the server can be tried without bringing a model. Licence: Apache-2.0.

| | |
| --- | --- |
| input | `images` [N, 3, 320, 320] float32, RGB 0..1, letterboxed on grey 114 |
| output | `output0` [N, {4 + len(CLASS_NAMES)}, 2100]: cx cy w h in input pixels, \
then class probabilities; not suppressed |
| network | anchor-free convolutional, strides 8, 16 and 32; {training.size} |
| trained on | {scenes:,} scenes drawn by `tools/scenes.py` (seeds from 1,000,000), \
{training.steps:,} steps of {training.batch} |
| trained by | `python tools/train_demo.py shapes` with its defaults, seed 0, on a CPU |

## Measured

```
{training.result}
```

On the {len(HELD_OUT_SEEDS)} scenes of seeds {HELD_OUT_SEEDS.start} to {HELD_OUT_SEEDS.stop - 1}, \
never trained on: pycocotools over onnxruntime, suppression at
overlap 0.7. `tests/test_demo_models.py` measures it again.

## Limits

It knows drawn, flat, filled shapes, from about 16 px in a picture of 320 px, at most 40 % hidden. It has
never seen a photograph: real round or square things are not what it was made to find.
"""


def digits_card(training: Training) -> str:
    return f"""\
# digits

A small classifier of single handwritten digits.
Made by this project so that the server can be tried without bringing a model. Licence: Apache-2.0.

| | |
| --- | --- |
| input | `images` [N, 3, 32, 32] float32, RGB 0..1, the picture resized bilinearly |
| output | `output0` [N, 10] probabilities |
| network | four convolutions and a linear layer; {training.size} |
| trained on | four fifths of scikit-learn's bundled digits (`load_digits`; from UCI, CC BY 4.0), \
moved, recoloured and inverted, {training.steps:,} steps of {training.batch} |
| trained by | `python tools/train_demo.py digits` with its defaults, seed 0, on a CPU |

## Measured

```
{training.result}
```

On the held-out fifth: 360 pictures, stratified, split seed 0, enlarged to 128 px, over onnxruntime.
`tests/test_demo_models.py` measures it again.

## Limits

The data set's pictures are 8x8 pixels. One upright digit must fill most of the picture, and every picture is
named some digit, also one that holds none.
"""
