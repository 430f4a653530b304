"""Train, export and measure the demo models embedded in the server.

    python tools/train_demo.py shapes|digits|all [--steps N] [--out DIR]

Needs PyTorch, which nothing else in this project does. `shapes` learns from generated scenes (scenes.py) and
`digits` from scikit-learn's bundled handwritten digits, so no picture is downloaded. Each model goes to
DIR/<name>/<name>.onnx, in the layout and with the metadata of an Ultralytics export, beside a MODEL_CARD.md
that holds the measured result.
"""

# Checked where PyTorch is absent, its classes and decorators count as untyped.
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from demo_cards import Training, digits_card, shapes_card
from demo_detector import Detector, Exported, Truth, detection_loss
from demo_scoring import (
    letterbox,
    onnx_classifier,
    onnx_detector,
    score_digits,
    score_shapes,
    split_digits,
)
from scenes import CLASS_NAMES, MAX_SHAPES, Floats, Image, Ints, draw_scene
from torch import Tensor, nn

SEED = 0
DEMO_DIR = Path(__file__).parents[1] / "server" / "visionpool_server" / "demo"
EXPORT_DATE = "2026-11-20T00:00:00"
OPSET = 17

SHAPES_SIZE = 320
SHAPES_STEPS = 10_000
SHAPES_BATCH = 16
SHAPES_POOL = 16_384
SHAPES_FIRST_SEED = 1_000_000

DIGITS_SIZE = 32
DIGITS_STEPS = 3_000
DIGITS_BATCH = 64


# -- what both trainings share -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine down to a hundredth (SGDR, arXiv:1608.03983)."""

    steps: int
    warmup: int = 200

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * min(done, 1))) / 2


class Average:
    """Exponential moving average of a model's weights and statistics (Polyak averaging)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        # Early weights are worth little, so the average looks back no further than it is long.
        self.updates += 1
        keep = min(self.decay, self.updates / (self.updates + 10))
        for mean, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)


def fit(model: nn.Module, losses: Iterator[Tensor], steps: int, rate: float, decay: float) -> nn.Module:
    """Take `steps` AdamW steps on the losses in turn; the averaged model, ready to export."""
    norms_and_biases = [p for p in model.parameters() if p.ndim < 2]
    kernels = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": kernels, "weight_decay": 0.02}, {"params": norms_and_biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(steps))
    average, recent, started = Average(model, decay), 0.0, time.monotonic()
    for step in range(1, steps + 1):
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        scheduler.step()
        average.update(model)
        recent += float(loss.detach())
        if step % 250 == 0:
            elapsed = time.monotonic() - started
            print(f"step {step}/{steps}  loss {recent / 250:.4f}  {elapsed:.0f} s", flush=True)
            recent = 0.0
    return average.model


def export(model: nn.Module, size: int, path: Path, metadata: dict[str, str]) -> None:
    """Write ONNX with a free batch dimension; batch normalisation is folded into the convolutions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = model.eval().to(memory_format=torch.contiguous_format)
    sample = torch.zeros(2, 3, size, size)
    torch.onnx.export(
        model,
        (sample,),
        path,
        input_names=["images"],
        output_names=["output0"],
        dynamic_axes={"images": {0: "batch"}, "output0": {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,
    )
    written = onnx.load(path)
    onnx.helper.set_model_props(written, metadata)
    # The exporter loses the lengths after the batch; servers read them to tell layouts apart.
    dims = written.graph.output[0].type.tensor_type.shape.dim
    for dim, length in list(zip(dims, model(sample).shape, strict=True))[1:]:
        dim.dim_value = length
    onnx.checker.check_model(written, full_check=True)
    onnx.save(written, path)


def export_metadata(name: str, task: str, size: int, stride: int, names: tuple[str, ...]) -> dict[str, str]:
    """The metadata keys that an Ultralytics export writes, by which servers recognise such models."""
    return {
        "description": f"visionpool demo model '{name}'",
        "author": "visionpool",
        "version": "1.0.0",
        "date": EXPORT_DATE,
        "license": "Apache-2.0",
        "task": task,
        "stride": str(stride),
        "batch": "1",
        "imgsz": str([size, size]),
        "names": str(dict(enumerate(names))),
    }


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# -- shapes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScenePool:
    """Letterboxed scenes: images (P, S, S, 3) uint8, boxes (P, M, 4) input pixels, label ids (P, M) or -1."""

    images: Image
    boxes: Floats
    label_ids: Ints


def _fitted_scene(seed: int) -> tuple[Image, Floats, Ints]:
    cv2.setNumThreads(1)
    scene = draw_scene(seed)
    fitted = letterbox(scene.image, SHAPES_SIZE)
    return fitted.image, fitted.to_input(scene.boxes), scene.label_ids


def draw_pool(count: int) -> ScenePool:
    """Draw the first `count` training scenes, on all cores."""
    pool = ScenePool(
        images=np.empty((count, SHAPES_SIZE, SHAPES_SIZE, 3), np.uint8),
        boxes=np.zeros((count, MAX_SHAPES, 4), np.float32),
        label_ids=np.full((count, MAX_SHAPES), -1, np.int64),
    )
    seeds = range(SHAPES_FIRST_SEED, SHAPES_FIRST_SEED + count)
    with get_context("spawn").Pool() as workers:
        for k, (image, boxes, label_ids) in enumerate(workers.imap(_fitted_scene, seeds, chunksize=32)):
            pool.images[k] = image
            pool.boxes[k, : len(boxes)] = boxes
            pool.label_ids[k, : len(boxes)] = label_ids
    return pool


_SIGN_X, _SHIFT_X = torch.tensor([-1.0, 1, -1, 1]), torch.tensor([1.0, 0, 1, 0]) * SHAPES_SIZE
_SIGN_Y, _SHIFT_Y = torch.tensor([1.0, -1, 1, -1]), torch.tensor([0.0, 1, 0, 1]) * SHAPES_SIZE


def _turned(images: Tensor, boxes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One of the square's eight symmetries, and an exchange of colour channels, for a whole batch."""
    images = images[:, torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.5:
        images, boxes = images.flip(3), boxes[..., [2, 1, 0, 3]] * _SIGN_X + _SHIFT_X
    if rng.random() < 0.5:
        images, boxes = images.flip(2), boxes[..., [0, 3, 2, 1]] * _SIGN_Y + _SHIFT_Y
    if rng.random() < 0.5:
        images, boxes = images.transpose(2, 3), boxes[..., [1, 0, 3, 2]]
    return images, boxes


def scene_batches(pool: ScenePool) -> Iterator[tuple[Tensor, Truth]]:
    """Endless shuffled batches: images (N, 3, S, S) float32 0..1 and their truth."""
    rng = np.random.default_rng(SEED)
    while True:
        for chosen in np.split(rng.permutation(len(pool.images)), len(pool.images) // SHAPES_BATCH):
            images = torch.from_numpy(pool.images[chosen]).permute(0, 3, 1, 2)
            images, boxes = _turned(images, torch.from_numpy(pool.boxes[chosen]), rng)
            label_ids = torch.from_numpy(pool.label_ids[chosen])
            pixels = images.contiguous(memory_format=torch.channels_last).float() / 255
            yield pixels, Truth(boxes, label_ids.clamp(min=0), label_ids >= 0)


def shapes_losses(detector: Detector, pool: ScenePool) -> Iterator[Tensor]:
    for images, truth in scene_batches(pool):
        with torch.autocast("cpu", torch.bfloat16):
            distances, labels = detector(images)
        yield detection_loss(detector, distances, labels, truth)


def train_shapes(steps: int, out: Path) -> None:
    started = time.monotonic()
    detector = Detector(len(CLASS_NAMES), SHAPES_SIZE).to(memory_format=torch.channels_last).train()
    pool = draw_pool(min(SHAPES_POOL, steps * SHAPES_BATCH))
    print(f"drew {len(pool.images)} scenes in {time.monotonic() - started:.0f} s", flush=True)
    trained = fit(detector, shapes_losses(detector, pool), steps, rate=3e-3, decay=0.999)
    assert isinstance(trained, Detector)
    path = out / "shapes" / "shapes.onnx"
    stride = int(trained.strides.max())
    metadata = export_metadata("shapes", "detect", SHAPES_SIZE, stride, CLASS_NAMES)
    export(Exported(trained), SHAPES_SIZE, path, metadata)
    score = score_shapes(onnx_detector(path))
    result = (
        f"shapes: mAP50 {score.map50:.4f}, mAP50-95 {score.map50_95:.4f}; "
        f"trained and measured in {time.monotonic() - started:.0f} s"
    )
    record = Training(path, parameter_count(trained), steps, SHAPES_BATCH, result)
    path.with_name("MODEL_CARD.md").write_text(shapes_card(record, len(pool.images)))
    print(result)


# -- digits --------------------------------------------------------------------------------------------------


class DigitNet(nn.Sequential):
    """Pictures (N, 3, 32, 32) 0..1 to class logits (N, 10)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 1), (16, 24, 2), (24, 32, 2), (32, 48, 2)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(48 * 4 * 4, 10))


def digit_pictures(ink: Tensor) -> Tensor:
    """Ink (N, 8, 8) 0..1 as varied pictures (N, 3, 32, 32): moved, either polarity, any colours, grain."""
    count = len(ink)
    mode = ("nearest", "bilinear", "bicubic")[int(torch.randint(3, ()))]
    large = F.interpolate(ink[:, None], scale_factor=int(torch.randint(4, 9, ())), mode=mode)
    turn = (torch.rand(count) - 0.5) * 0.35
    zoom = 1 + torch.rand(count) * 0.5 - 0.12
    shift = (torch.rand(count, 2, 1) - 0.5) * 0.25
    turned = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
    matrix = torch.cat([turned * zoom.view(-1, 1, 1), shift], 2)
    grid = F.affine_grid(matrix, [count, 1, DIGITS_SIZE, DIGITS_SIZE], align_corners=False)
    strokes = F.grid_sample(large, grid, align_corners=False).clamp(0, 1)
    paper = torch.rand(count, 3, 1, 1) * 0.4
    inked = 1 - torch.rand(count, 3, 1, 1) * 0.4
    # A quarter of the pictures are pure black and white, as the data set itself.
    pure = (torch.rand(count, 1, 1, 1) < 0.25).float()
    paper, inked = paper * (1 - pure), inked * (1 - pure) + pure
    pictures = paper + strokes * (inked - paper)
    pictures = torch.where(torch.rand(count, 1, 1, 1) < 0.5, 1 - pictures, pictures)
    grain = torch.randn_like(pictures) * torch.rand(count, 1, 1, 1) * 0.06
    return (pictures + grain).clamp(0, 1)


def digits_losses(model: nn.Module) -> Iterator[Tensor]:
    split = split_digits()
    ink, labels = torch.from_numpy(split.train_ink) / 16, torch.from_numpy(split.train_labels)
    while True:
        chosen = torch.randint(len(ink), (DIGITS_BATCH,))
        yield F.cross_entropy(model(digit_pictures(ink[chosen])), labels[chosen], label_smoothing=0.02)


def train_digits(steps: int, out: Path) -> None:
    started = time.monotonic()
    model = DigitNet().train()
    trained = fit(model, digits_losses(model), steps, rate=3e-3, decay=0.998)
    path = out / "digits" / "digits.onnx"
    metadata = export_metadata("digits", "classify", DIGITS_SIZE, 1, tuple("0123456789"))
    export(nn.Sequential(trained, nn.Softmax(1)), DIGITS_SIZE, path, metadata)
    classify = onnx_classifier(path)
    light, dark = score_digits(classify), score_digits(classify, dark_ink=True)
    result = (
        f"digits: accuracy {light:.4f} as light ink on black, {dark:.4f} as dark ink on white; "
        f"trained and measured in {time.monotonic() - started:.0f} s"
    )
    record = Training(path, parameter_count(trained), steps, DIGITS_BATCH, result)
    path.with_name("MODEL_CARD.md").write_text(digits_card(record))
    print(result)


TRAINERS: dict[str, tuple[Callable[[int, Path], None], int]] = {
    "shapes": (train_shapes, SHAPES_STEPS),
    "digits": (train_digits, DIGITS_STEPS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export and measure the demo models.")
    parser.add_argument("model", choices=[*TRAINERS, "all"])
    parser.add_argument("--steps", type=int, help="optimiser steps; the shipped weights used the default")
    parser.add_argument("--out", type=Path, default=DEMO_DIR, help="directory of the model folders")
    args = parser.parse_args()
    for name in TRAINERS if args.model == "all" else [args.model]:
        train, default_steps = TRAINERS[name]
        torch.manual_seed(SEED)
        train(args.steps or default_steps, args.out)


if __name__ == "__main__":
    main()
