"""The `shapes` detector: a small anchor-free network, its label assignment and its loss, written from papers.

Network: cross-stage-partial blocks (CSPNet, arXiv:1911.11929), a top-down and bottom-up feature pyramid
(PANet, arXiv:1803.01534), and decoupled anchor-free heads (FCOS, arXiv:1904.01355; YOLOX, arXiv:2107.08430)
that give each box side as a distribution over distances (generalized focal loss, arXiv:2006.04388).

Array shapes: N pictures, A anchor points (one per cell of the 8, 16 and 32 px grids), M padded true boxes,
C classes.
"""

# Checked where PyTorch is absent, its classes and decorators count as untyped.
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32)
BINS = 16
"""A box side lies 0..BINS-1 strides from its anchor point."""


class ConvUnit(nn.Sequential):
    """Convolution, batch normalisation, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03),
            nn.SiLU(inplace=True),
        )


class PartialStage(nn.Module):
    """Half of the channels pass through residual 3x3 pairs, the other half past them (CSPNet)."""

    def __init__(self, inputs: int, outputs: int, depth: int = 1, residual: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.half = half
        self.residual = residual
        self.enter = ConvUnit(inputs, 2 * half, kernel=1)
        self.pairs = nn.ModuleList(nn.Sequential(ConvUnit(half, half), ConvUnit(half, half)) for _ in range(depth))
        self.leave = ConvUnit((2 + depth) * half, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).split(self.half, 1))
        for pair in self.pairs:
            grown = pair(parts[-1])
            parts.append(parts[-1] + grown if self.residual else grown)
        out: Tensor = self.leave(torch.cat(parts, 1))
        return out


class Pyramid(nn.Module):
    """Backbone and PANet neck: pictures (N, 3, H, W) to features of the three strides."""

    def __init__(self, widths: tuple[int, int, int, int, int], neck: int) -> None:
        super().__init__()
        c2, c4, c8, c16, c32 = widths
        self.stem = nn.Sequential(ConvUnit(3, c2, stride=2), ConvUnit(c2, c4, stride=2), PartialStage(c4, c4))
        self.down8 = nn.Sequential(ConvUnit(c4, c8, stride=2), PartialStage(c8, c8, depth=2))
        self.down16 = nn.Sequential(ConvUnit(c8, c16, stride=2), PartialStage(c16, c16, depth=2))
        self.down32 = nn.Sequential(ConvUnit(c16, c32, stride=2), PartialStage(c32, c32))
        self.top = nn.Sequential(nn.MaxPool2d(5, 1, 2), ConvUnit(c32, neck, kernel=1))
        self.same = ConvUnit(c32, neck, kernel=1)
        self.up16 = PartialStage(c16 + 2 * neck, neck, residual=False)
        self.up8 = PartialStage(c8 + neck, neck, residual=False)
        self.back16 = ConvUnit(neck, neck, stride=2)
        self.out16 = PartialStage(2 * neck, neck, residual=False)
        self.back32 = ConvUnit(neck, neck, stride=2)
        self.out32 = PartialStage(3 * neck, neck, residual=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d8 = self.down8(self.stem(images))
        d16 = self.down16(d8)
        d32 = self.down32(d16)
        # The max pooling widens the coarsest view cheaply, so that large shapes are seen whole.
        top = torch.cat([self.same(d32), self.top(d32)], 1)
        u16 = self.up16(torch.cat([F.interpolate(top, scale_factor=2.0, mode="nearest"), d16], 1))
        u8 = self.up8(torch.cat([F.interpolate(u16, scale_factor=2.0, mode="nearest"), d8], 1))
        o16 = self.out16(torch.cat([self.back16(u8), u16], 1))
        o32 = self.out32(torch.cat([self.back32(o16), top], 1))
        return u8, o16, o32


class Head(nn.Module):
    """Box distances and class logits of one stride: (N, 4*BINS, h*w) and (N, C, h*w)."""

    def __init__(self, inputs: int, classes: int, stride: int, size: int) -> None:
        super().__init__()
        self.classes = classes
        self.box = nn.Sequential(ConvUnit(inputs, 48), nn.Conv2d(48, 4 * BINS, 1))
        self.label = nn.Sequential(
            ConvUnit(inputs, inputs, groups=inputs), ConvUnit(inputs, 48, 1), nn.Conv2d(48, classes, 1)
        )
        # A prior of few objects per picture keeps the first steps stable (RetinaNet, arXiv:1708.02002).
        self.cells = (size // stride) ** 2
        nn.init.constant_(self.label[-1].bias, float(torch.logit(torch.tensor(5 / classes / self.cells))))
        nn.init.constant_(self.box[-1].bias, 1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # One free dimension per reshape keeps shape arithmetic out of the exported graph.
        box, label = self.box(x), self.label(x)
        return box.reshape(-1, 4 * BINS, self.cells), label.reshape(-1, self.classes, self.cells)


class Detector(nn.Module):
    """Pictures (N, 3, size, size) 0..1 to distance logits (N, 4*BINS, A) and class logits (N, C, A)."""

    points: Tensor
    strides: Tensor

    def __init__(
        self,
        classes: int,
        size: int = 320,
        widths: tuple[int, int, int, int, int] = (16, 32, 48, 64, 64),
        neck: int = 48,
    ) -> None:
        super().__init__()
        self.size = size
        self.pyramid = Pyramid(widths, neck)
        self.heads = nn.ModuleList(Head(neck, classes, stride, size) for stride in STRIDES)
        points, strides = anchor_points(size)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        levels = [head(x) for head, x in zip(self.heads, self.pyramid(images), strict=True)]
        return torch.cat([box for box, _ in levels], 2), torch.cat([label for _, label in levels], 2)

    def sides(self, distances: Tensor) -> Tensor:
        """Distance logits (N, 4*BINS, A) to expected left, top, right, bottom distances (N, 4, A), pixels."""
        shares = distances.reshape(-1, 4, BINS, self.strides.numel()).softmax(2)
        bins = torch.arange(BINS, dtype=shares.dtype, device=shares.device).view(1, 1, BINS, 1)
        return (shares * bins).sum(2) * self.strides

    def corners(self, distances: Tensor) -> Tensor:
        """Distance logits (N, 4*BINS, A) to boxes (N, A, 4), x1 y1 x2 y2 in input pixels."""
        left_top, right_bottom = self.sides(distances).split(2, 1)
        return torch.cat([self.points - left_top, self.points + right_bottom], 1).transpose(1, 2)


class Exported(nn.Module):
    """The detector as served: (N, 4+C, A), rows cx cy w h in input pixels, then class probabilities."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        distances, labels = self.detector(images)
        left_top, right_bottom = self.detector.sides(distances).split(2, 1)
        centres = self.detector.points + (right_bottom - left_top) / 2
        return torch.cat([centres, left_top + right_bottom, labels.sigmoid()], 1)


def anchor_points(size: int) -> tuple[Tensor, Tensor]:
    """Cell centres (2, A) in input pixels, and each cell's stride (A,)."""
    points, strides = [], []
    for stride in STRIDES:
        line = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(line, line, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()]))
        strides.append(torch.full((line.numel() ** 2,), float(stride)))
    return torch.cat(points, 1), torch.cat(strides)


@dataclass(frozen=True)
class Truth:
    """Padded ground truth: boxes (N, M, 4) x1 y1 x2 y2 input pixels, labels (N, M), valid (N, M) bool."""

    boxes: Tensor
    labels: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Assignment:
    """What each anchor should say: boxes (N, A, 4), scores (N, A, C), positive (N, A) bool."""

    boxes: Tensor
    scores: Tensor
    positive: Tensor


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of broadcastable boxes (..., 4)."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1) - shared
    return shared / union.clamp(min=1e-6)


def complete_overlap(first: Tensor, second: Tensor) -> Tensor:
    """CIoU (arXiv:1911.08287) of boxes (K, 4): overlap less centre distance and aspect disagreement."""
    iou = overlap(first, second)
    hull = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    between = (first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]) / 2
    size1, size2 = first[:, 2:] - first[:, :2], second[:, 2:] - second[:, :2]
    angle1 = torch.atan2(size1[:, 0], size1[:, 1].clamp(min=1e-6))
    angle2 = torch.atan2(size2[:, 0], size2[:, 1].clamp(min=1e-6))
    aspect = 4 / torch.pi**2 * (angle1 - angle2) ** 2
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect).clamp(min=1e-6)
    return iou - (between**2).sum(1) / (hull**2).sum(1).clamp(min=1e-6) - weight * aspect


@torch.no_grad()
def assign(
    boxes: Tensor,
    scores: Tensor,
    points: Tensor,
    truth: Truth,
    top: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Task-aligned assignment (TOOD, arXiv:2108.07755) of predictions boxes (N, A, 4), scores (N, A, C).

    A true box takes the `top` anchors inside it that best join class score and overlap, s^alpha * iou^beta;
    their target score is that alignment, scaled to peak at the box's best overlap.
    """
    margins = torch.cat([points.T - truth.boxes[..., None, :2], truth.boxes[..., None, 2:] - points.T], -1)
    usable = (margins.amin(-1) > 0.01) & truth.valid[..., None]
    iou = overlap(truth.boxes[:, :, None], boxes[:, None]) * usable
    index = truth.labels[..., None].expand(-1, -1, boxes.shape[1])
    said = scores.transpose(1, 2).gather(1, index)
    metric = said**alpha * iou**beta * usable
    chosen = torch.zeros_like(usable).scatter_(2, metric.topk(top, 2).indices, True) & usable
    # An anchor wanted by several boxes goes to the one that it overlaps most.
    owner = torch.where(chosen, iou, -1.0).argmax(1)
    chosen &= F.one_hot(owner, truth.boxes.shape[1]).transpose(1, 2).bool()
    metric, iou = metric * chosen, iou * chosen
    target = metric * (iou.amax(2) / metric.amax(2).clamp(min=1e-9))[..., None]
    labels = F.one_hot(truth.labels, scores.shape[2]).to(target.dtype)
    return Assignment(
        boxes=truth.boxes.gather(1, owner[..., None].expand(-1, -1, 4)),
        scores=target.transpose(1, 2) @ labels,
        positive=chosen.any(1),
    )


def distribution_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (arXiv:2006.04388): logits (K, BINS) against distances (K,) in strides."""
    distances = distances.clamp(0, BINS - 1 - 0.01)
    low = distances.long()
    share = distances - low
    below = F.cross_entropy(logits, low, reduction="none")
    above = F.cross_entropy(logits, low + 1, reduction="none")
    return below * (1 - share) + above * share


def detection_loss(detector: Detector, distances: Tensor, labels: Tensor, truth: Truth) -> Tensor:
    """Scalar loss of the raw outputs: class cross-entropy, CIoU and distribution loss, score-weighted."""
    distances, logits = distances.float(), labels.float().transpose(1, 2)
    boxes = detector.corners(distances)
    goal = assign(boxes.detach(), logits.detach().sigmoid(), detector.points, truth)
    total = goal.scores.sum().clamp(min=1)
    class_loss = F.binary_cross_entropy_with_logits(logits, goal.scores, reduction="sum") / total
    chosen = goal.positive
    weight = goal.scores.sum(2)[chosen]
    box_loss = ((1 - complete_overlap(boxes[chosen], goal.boxes[chosen])) * weight).sum() / total
    points = detector.points.T
    wanted = torch.cat([points - goal.boxes[..., :2], goal.boxes[..., 2:] - points], 2)
    wanted = (wanted / detector.strides[:, None])[chosen]
    said = distances.transpose(1, 2)[chosen].unflatten(1, (4, BINS))
    side_loss = distribution_loss(said.flatten(0, 1), wanted.flatten()).view(-1, 4).mean(1)
    return 0.5 * class_loss + 7.5 * box_loss + 1.5 * (side_loss * weight).sum() / total
