"""ONNX Runtime as the tests of this process use it: without threads that spin, and references opened once.

A session's threads spin for a while after each run, to be there at once for the next. Between the small runs of tests, two
of which go on at a time, that was half of the processor's time; what is computed is the same.
"""

from __future__ import annotations

from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import onnxruntime as ort

_SPINNING = "session.intra_op.allow_spinning"


def keep_sessions_from_spinning() -> None:
    """From now on, sessions spin only where their options say so. Those made without options have one thread alone."""
    made = ort.InferenceSession.__init__

    @wraps(made)
    def make(self: ort.InferenceSession, model: Any, sess_options: Any = None, *arguments: Any, **more: Any) -> None:
        if sess_options is None:
            sess_options = ort.SessionOptions()
            sess_options.intra_op_num_threads = 1
        if not _said(sess_options):
            sess_options.add_session_config_entry(_SPINNING, "0")
        made(self, model, sess_options, *arguments, **more)

    ort.InferenceSession.__init__ = make


def reference_session(model: Path) -> ort.InferenceSession:
    """For second implementations: on the CPU, on one thread, the one that was made last time of the same file."""
    state = model.stat()
    return _opened(str(model), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _opened(model: str, *_: int) -> ort.InferenceSession:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def _said(options: ort.SessionOptions) -> bool:
    try:
        return bool(options.get_session_config_entry(_SPINNING))
    except RuntimeError:  # it has no such entry
        return False
