"""The shapes of outputs that are known before a run: those that the file fixes, or names by dimensions of the inputs.

Such outputs are copied straight to where they are wanted. A file may be wrong about them, and what it cannot know (how many
boxes there are) it may state all the same: a first run, without promises, shows which shapes to believe.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime as ort

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


class Promises:
    """Of one session; all its contexts share them."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._inputs = {node.name: tuple(node.shape) for node in session.get_inputs()}
        self._outputs = {node.name: tuple(node.shape) for node in session.get_outputs()}
        self._tried = False

    def shapes(self, given: Shapes) -> dict[str, Shape]:
        """By output, of those that are known, for inputs of the shapes `given`."""
        return self._said(given) if self._tried else {}

    def compare(self, given: Shapes, found: Shapes) -> None:
        """After a run: what it shows to be wrong is believed no more."""
        for name, shape in self._said(given).items():
            if found[name] != shape:
                self._outputs.pop(name, None)  # which another worker may have done
        self._tried = True

    def _said(self, given: Shapes) -> dict[str, Shape]:
        sizes = self._sizes(given)
        said = {name: tuple(sizes.get(size, size) for size in shape) for name, shape in list(self._outputs.items())}
        return {name: shape for name, shape in said.items() if all(isinstance(size, int) for size in shape)}

    def _sizes(self, given: Shapes) -> dict[object, int]:
        """By the names of dimensions, without those that stand for different sizes."""
        sizes: dict[object, set[int]] = {}
        for name, shape in given.items():
            for symbol, size in zip(self._inputs.get(name, ()), shape, strict=False):
                if isinstance(symbol, str):
                    sizes.setdefault(symbol, set()).add(size)
        return {symbol: next(iter(found)) for symbol, found in sizes.items() if len(found) == 1}
