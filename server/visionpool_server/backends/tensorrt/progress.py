"""How far a build is: TensorRT's phases within phases as a callback, and what that raises as an end of the build."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

Progress = Callable[[str, int, int | None], None]  # what is under way, how much of it is done, and of how much


def silent(step: str, done: int, total: int | None) -> None:
    """A `Progress` that says nothing."""


class Watch:
    """Turns TensorRT's phases within phases into progress, and what progress raises into an end of the build."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._totals: dict[str, int] = {}
        self._raised: BaseException | None = None

    def start(self, phase: str, steps: int) -> None:
        self._totals[phase] = steps
        self._tell(phase, 0)

    def step(self, phase: str, step: int) -> bool:
        """Whether to go on."""
        self._tell(phase, step + 1)
        return self._raised is None

    def check(self, *, canceled: bool) -> None:
        """Raises what has been raised meanwhile: through TensorRT, nothing passes."""
        if self._raised is not None:
            raise self._raised
        if canceled:  # an interrupt that came before the first line of our own
            raise KeyboardInterrupt

    def _tell(self, phase: str, done: int) -> None:
        if self._raised is not None:
            return
        try:
            self._progress(f"building: {phase}", done, self._totals.get(phase))
        except BaseException as error:  # an interrupt, too
            self._raised = error


@cache
def monitor_class(trt: Any) -> Any:
    """A subclass of the module's own IProgressMonitor."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # its base is found at run time
        def __init__(self, watch: Watch) -> None:
            trt.IProgressMonitor.__init__(self)
            self._watch = watch

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._watch.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._watch.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            """The next phase says that it has begun."""

    return Monitor
