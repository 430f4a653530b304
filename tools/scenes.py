"""Generated scenes of flat shapes, for training and scoring the embedded `shapes` detector.

A scene is drawn entirely from one integer seed: background, shapes with random colour, texture, rotation and
overlap, then the faults of a camera (blur, noise, JPEG). Same seed, same scene, so a held-out set is a range
of seeds and needs no files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Rng = np.random.Generator

CLASS_NAMES = ("circle", "square", "triangle", "star", "pentagon", "cross", "ring", "heart")

MIN_WIDTH, MAX_WIDTH = 320, 640
MIN_HEIGHT, MAX_HEIGHT = 240, 640
MAX_SHAPES = 12
MAX_HIDDEN = 0.4
"""No shape may end up with more than this fraction of its pixels under later ones."""

MIN_RADIUS = 9.0
"""Pixels; the smallest outlines are then about 16 px across."""

_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Scene:
    """One picture with its ground truth.

    image: (H, W, 3) uint8 RGB.
    boxes: (n, 4) float32, x1 y1 x2 y2 in pixels, pixel i spanning [i, i + 1); the extent of each drawn
        outline inside the picture, also where a later shape covers it.
    label_ids: (n,) int64 indices into CLASS_NAMES.
    """

    image: Image
    boxes: Floats
    label_ids: Ints


@dataclass
class _Canvas:
    """The picture while it is painted; `owner` (H, W) int16 holds the index of the topmost shape, or -1."""

    image: Image
    owner: npt.NDArray[np.int16]
    areas: list[int]
    boxes: list[tuple[int, int, int, int]]
    label_ids: list[int]


def draw_scene(seed: int) -> Scene:
    """Draw the scene of a seed: 320..640 px wide, 240..640 px high, 1 to MAX_SHAPES shapes."""
    rng = np.random.default_rng(seed)
    width = int(rng.integers(MIN_WIDTH, MAX_WIDTH + 1))
    height = int(np.clip(width / np.exp(rng.uniform(-0.45, 0.6)), MIN_HEIGHT, MAX_HEIGHT))
    image = _background(rng, height, width)
    canvas = _Canvas(image, np.full((height, width), -1, np.int16), [], [], [])
    for _ in range(int(rng.integers(1, MAX_SHAPES + 1))):
        _place_shape(rng, canvas)
    return Scene(
        _camera(rng, canvas.image),
        np.array(canvas.boxes, np.float32).reshape(-1, 4),
        np.array(canvas.label_ids, np.int64),
    )


# -- outlines ------------------------------------------------------------------------------------------------


def _regular(corners: int) -> Floats:
    turn = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.sin(turn), -np.cos(turn)], 1).astype(np.float32)


def _star(rng: Rng) -> Floats:
    points = _regular(10)
    points[1::2] *= rng.uniform(0.38, 0.5)
    return points


def _cross(rng: Rng) -> Floats:
    arm = float(rng.uniform(0.25, 0.38))
    quarter = np.array([[-arm, -1], [arm, -1], [arm, -arm]], np.float32)
    turn = np.array([[0, 1], [-1, 0]], np.float32)
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _heart() -> Floats:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16, (y - 2) / 16], 1).astype(np.float32)


def _outline(rng: Rng, name: str) -> list[Floats]:
    """Closed polygons (k, 2) about the origin, of radius about 1; a second one is a hole."""
    if name == "ring":
        return [_regular(64), _regular(64) * np.float32(rng.uniform(0.45, 0.7))]
    makers: dict[str, Callable[[], Floats]] = {
        "circle": lambda: _regular(64),
        "square": lambda: _regular(4),
        "triangle": lambda: _regular(3),
        "star": lambda: _star(rng),
        "pentagon": lambda: _regular(5),
        "cross": lambda: _cross(rng),
        "heart": _heart,
    }
    return [makers[name]()]


def _transform(rng: Rng, radius: float) -> Floats:
    """A (2, 2) matrix: mild stretch, any rotation, scaled to `radius` pixels."""
    turn = rng.uniform(0, 2 * np.pi)
    stretch = np.exp(rng.uniform(-0.14, 0.14))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.asarray(np.diag([stretch, 1 / stretch]) @ rotation * radius, np.float32)


# -- colour --------------------------------------------------------------------------------------------------


def _colour(rng: Rng) -> Floats:
    return rng.uniform(0, 255, 3).astype(np.float32)


def _contrasting(rng: Rng, against: Floats) -> Floats:
    """A colour that can be told from `against`, both (3,) float32 0..255."""
    candidates = rng.uniform(0, 255, (8, 3)).astype(np.float32)
    distance = np.minimum(np.linalg.norm(candidates - against, axis=1), 75)
    return np.asarray(candidates[int(np.argmax(distance))])


def _ramp(rng: Rng, height: int, width: int) -> Floats:
    """A linear ramp (H, W) 0..1 in a random direction."""
    turn = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(np.cos(turn))
    y = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(np.sin(turn))
    plane = np.add.outer(y, x)
    return np.asarray(cv2.normalize(plane, plane, 0, 1, cv2.NORM_MINMAX), np.float32)


def _waves(rng: Rng, height: int, width: int) -> Floats:
    """Stripes or, in two directions, checks (H, W) 0..1."""
    cycles = max(height, width) / rng.uniform(6, 60)
    bands = np.floor(_ramp(rng, height, width) * cycles)
    if rng.random() < 0.4:
        bands += np.floor(_ramp(rng, height, width) * cycles)
    return np.asarray(np.mod(bands, 2), np.float32)


def _clouds(rng: Rng, height: int, width: int) -> Floats:
    """Smooth value noise (H, W) 0..1."""
    cells = int(rng.integers(3, 24))
    grid = rng.random((cells, cells), np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _texture(rng: Rng, height: int, width: int, first: Floats, second: Floats) -> Image:
    """A mix (H, W, 3) uint8 of two colours (3,): ramp, waves or clouds."""
    pattern = (_ramp, _waves, _clouds)[int(rng.integers(3))](rng, height, width)
    palette = np.clip(np.linspace(first, second, 256), 0, 255).astype(np.uint8)[:, None]
    return np.asarray(cv2.applyColorMap(cv2.convertScaleAbs(pattern, alpha=255), palette), np.uint8)


def _background(rng: Rng, height: int, width: int) -> Image:
    """Plain, or a texture of limited contrast, with thin lines across as clutter: (H, W, 3) uint8."""
    colour = _colour(rng)
    other = colour + rng.uniform(-70, 70, 3).astype(np.float32)
    plain = rng.random() < 0.2
    image = _texture(rng, height, width, colour, colour if plain else other)
    for _ in range(int(rng.integers(0, 10)) if rng.random() < 0.5 else 0):
        ends = rng.uniform(0, 1, (2, 2)) * (width, height)
        paint = tuple(float(c) for c in _colour(rng))
        start, end = ((int(x), int(y)) for x, y in ends)
        cv2.line(image, start, end, paint, int(rng.integers(1, 4)), cv2.LINE_AA)
    return image


# -- painting ------------------------------------------------------------------------------------------------


def _place_shape(rng: Rng, canvas: _Canvas, tries: int = 8) -> None:
    """Paint one shape where it hides no earlier one too far; give up quietly when the scene is full."""
    height, width = canvas.owner.shape
    longer = max(height, width)
    for _ in range(tries):
        radius = max(MIN_RADIUS, longer * float(np.exp(rng.uniform(np.log(0.028), np.log(0.23)))))
        label_id = int(rng.integers(len(CLASS_NAMES)))
        inset = min(0.8 * radius, 0.45 * height, 0.45 * width)
        centre = rng.uniform((inset, inset), (width - inset, height - inset)).astype(np.float32)
        matrix = _transform(rng, radius)
        polygons = [p @ matrix + centre for p in _outline(rng, CLASS_NAMES[label_id])]
        if _try_paint(rng, canvas, polygons, label_id, radius):
            return


def _try_paint(rng: Rng, canvas: _Canvas, polygons: list[Floats], label_id: int, radius: float) -> bool:
    """Paint (k, 2) pixel polygons unless that hides another shape; says whether it did."""
    height, width = canvas.owner.shape
    points = np.concatenate(polygons)
    margin = 3 + int(0.3 * radius)
    left, top = np.maximum(np.floor(points.min(0)).astype(int) - margin, 0)
    right, bottom = np.minimum(np.ceil(points.max(0)).astype(int) + margin, (width, height))
    mask = _rasterise(polygons, (left, top), (bottom - top, right - left))
    solid = mask > 127
    owner = canvas.owner[top:bottom, left:right]
    if _hides_another(canvas, owner[solid]):
        return False
    region = canvas.image[top:bottom, left:right]
    region[:] = _painted(rng, region, mask, polygons, (left, top), radius)
    owner[solid] = len(canvas.areas)
    x, y, w, h = cv2.boundingRect(solid.view(np.uint8))
    canvas.areas.append(int(solid.sum()))
    canvas.boxes.append((left + x, top + y, left + x + w, top + y + h))
    canvas.label_ids.append(label_id)
    return True


def _hides_another(canvas: _Canvas, covered: npt.NDArray[np.int16]) -> bool:
    """Whether painting over these owners (k,) leaves one with too few visible pixels."""
    losses = np.bincount(covered + 1, minlength=1)[1:]
    for index in np.flatnonzero(losses):
        visible = int((canvas.owner == index).sum()) - int(losses[index])
        if visible < (1 - MAX_HIDDEN) * canvas.areas[index]:
            return True
    return False


def _fixed_point(polygon: Floats, origin: tuple[int, int]) -> npt.NDArray[np.int32]:
    # OpenCV puts integer coordinates at pixel centres, the boxes put them at pixel edges.
    shifted = polygon - np.array(origin, np.float32) - 0.5
    return np.round(shifted * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def _rasterise(polygons: list[Floats], origin: tuple[int, int], size: tuple[int, int]) -> Image:
    """Anti-aliased coverage (H, W) uint8 of the polygons, even-odd filled."""
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [_fixed_point(p, origin) for p in polygons], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask


def _painted(
    rng: Rng, region: Image, mask: Image, polygons: list[Floats], origin: tuple[int, int], radius: float
) -> Image:
    """The region (H, W, 3) uint8 with the masked shape on it: perhaps a shadow, a fill, perhaps a rim."""
    height, width = mask.shape
    under = region.astype(np.float32)
    if rng.random() < 0.3:
        shadow = cv2.GaussianBlur(np.roll(mask, int(0.12 * radius), (0, 1)), (0, 0), 0.1 * radius + 0.5)
        under *= 1 - shadow[..., None].astype(np.float32) * np.float32(0.5 / 255)
    backdrop = np.array(cv2.mean(region, mask)[:3], np.float32)
    colour = _contrasting(rng, backdrop)
    fill = np.empty_like(region)
    fill[:] = colour.astype(np.uint8)
    if rng.random() < 0.6:
        # The second colour stays on the far side of the first, so that no texture melts into the backdrop.
        second = colour + (colour - backdrop) * np.float32(rng.uniform(0, 0.5)) + rng.uniform(-35, 35, 3)
        fill = _texture(rng, height, width, colour, second.astype(np.float32))
    if rng.random() < 0.25:
        paint = tuple(float(c) for c in _contrasting(rng, colour))
        lines = [_fixed_point(p, origin) for p in polygons]
        thickness = max(1, int(radius * rng.uniform(0.04, 0.14)))
        cv2.polylines(fill, lines, True, paint, thickness, cv2.LINE_8, _SUBPIXEL_BITS)
    alpha = mask[..., None].astype(np.float32) / 255
    return np.clip(under + alpha * (fill - under), 0, 255).astype(np.uint8)


def _camera(rng: Rng, image: Image) -> Image:
    """Light, blur, grain and JPEG blocks, each only sometimes: (H, W, 3) uint8 in and out."""
    if rng.random() < 0.5:
        image = np.asarray(cv2.convertScaleAbs(image, alpha=rng.uniform(0.6, 1.15), beta=rng.uniform(0, 30)), np.uint8)
    if rng.random() < 0.35:
        sigma = rng.uniform(0.4, 1.4) * max(image.shape) / MAX_WIDTH
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    if rng.random() < 0.45:
        grain = rng.standard_normal(image.shape[:2], np.float32) * np.float32(rng.uniform(2, 14))
        image = np.asarray(cv2.add(image, cv2.merge([grain] * 3), dtype=cv2.CV_8U), np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(35, 95))
        coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB), np.uint8)
    return image
