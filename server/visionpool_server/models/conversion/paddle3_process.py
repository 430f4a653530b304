"""The process that converts: `python -m visionpool_server.models.conversion.paddle3_process PROGRAM PARAMETERS TARGET`."""

from __future__ import annotations

import sys
from pathlib import Path


def main(program: str, parameters: str, target: str) -> str | None:
    """Why it was refused, or None once `target` is written."""
    import onnx
    import paddle2onnx

    # Its other ways to finish a model install packages on their own.
    model = paddle2onnx.export(program, parameters, optimize_tool="none")
    try:
        onnx.checker.check_model(model)  # the converter writes a model with missing weights all the same
    except onnx.checker.ValidationError as error:
        return f"refused: the program and its weights do not fit: {str(error).splitlines()[0]}"
    Path(target).write_bytes(model)
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
