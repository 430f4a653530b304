"""Reads what a recogniser gives for a line of text: connectionist temporal classification, greedily. A leaf.

Source: Graves et al., "Connectionist Temporal Classification" (2006), best path decoding; PaddleOCR
`rec_postprocess.py`, `CTCLabelDecode`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visionpool_server.families.scores import finite

BLANK = 0  # PaddleOCR's class for "no character here"


def best_path(scores: NDArray[np.float32], characters: Sequence[str]) -> tuple[str, float]:
    """The text of `scores` (steps, classes), and the mean probability of its characters, 0 where there are none.

    `characters`: by class, the blank first. Logits become probabilities; rows that sum to 1 are left as they are.
    Raises InferenceFailed for scores that are no numbers.
    """
    if not scores.size:
        return "", 0.0
    ids = scores.argmax(axis=1)
    kept = ids != BLANK
    kept[1:] &= ids[1:] != ids[:-1]
    if not kept.any():
        return "", 0.0
    rows = _probabilities(scores[kept])
    best = finite(rows.max(axis=1))
    return "".join(characters[i] for i in ids[kept].tolist()), float(best.astype(np.float64).mean())


def _probabilities(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = rows.astype(np.float32, copy=False)
    if rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() < 1e-2:
        return rows
    exponents = np.exp(rows - rows.max(axis=1, keepdims=True))
    out: NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True)
    return out
