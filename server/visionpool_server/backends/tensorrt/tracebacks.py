"""What an exception keeps: the variables of all functions that it passed through, and TensorRT's objects among them.

They must not outlive the device, which is given back before anybody has read the exception.
"""

from __future__ import annotations

from traceback import clear_frames


def forget_variables(error: BaseException) -> None:
    """Of functions that have ended. Called with the device current, since TensorRT frees then what it has there."""
    chain: BaseException | None = error
    while chain is not None:
        clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
