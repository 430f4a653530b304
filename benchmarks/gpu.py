"""What an NVIDIA GPU does with this project, as a Markdown file for benchmarks/results, within ten minutes.

    python -m benchmarks.gpu [--out FILE.md] [--seconds 2] [--only drivers,pictures,overlap,onnxruntime,tensorrt]

For one machine with one GPU, no network, and whatever of the packages is there: a section whose package is missing says "not
run" and why. Each runs in a process of its own, so that none can end another; all end within `--limit` seconds. It prints as it
goes, and what a section has measured stays in FILE whatever becomes of it.

    drivers      cuda-bindings and pycuda: bandwidth of copies, cost of calls
    pictures     the kernel that prepares pictures against the recipe on the CPU: speed, numbers that differ
    overlap      copies beside computing: batches one by one against overlapped ones, and the timeline of the streams
    onnxruntime  the CUDA provider: the server over HTTP and KServe against the bare session's loop, YOLOv5n and a ResNet-50
    tensorrt     TensorRT or TensorRT-RTX: memory of contexts, f16 against f32, CUDA graphs, pool and server against a bare loop

On a machine that is lent for minutes and has no network, the working tree travels as it is, and what it needs as wheels in a
folder beside it, the large ones (onnxruntime-gpu with cuDNN, tensorrt_rtx) in pieces where one transfer does not hold them:

    pip install --no-index --no-deps --target /tmp/site wheels/*.whl
    PYTHONPATH=/tmp/site:client:server python -m benchmarks.gpu --yolov5n yolov5n_dyn.onnx --picture bus.jpg --out gpu.md

It has not run on a GPU yet; tests/test_gpu_benchmark.py runs every section on stand-ins for the driver and TensorRT.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Timer

from visionpool.errors import BackendUnavailable

from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.models import Models
from benchmarks.on_gpu.report import Report, failing

SECTIONS = {  # imported by who runs them: each needs packages that others do not
    "drivers": "drivers",
    "pictures": "pictures",
    "overlap": "overlap",
    "onnxruntime": "onnx_runtime",
    "tensorrt": "tensor_rt",
}
_PACKAGES = (
    *(
        "cuda-bindings",
        "pycuda",
        "tensorrt",
        "tensorrt_rtx",
        "onnxruntime-gpu",
        "onnxruntime",
        "opencv-python-headless",
    ),
    "numpy",
)
_END = 10.0  # seconds of a section's own that are left for it to end by itself


def run_section(name: str, machine: Machine, report: Report) -> None:
    """Whatever happens in it is a line of the report."""

    def section() -> None:
        import_module(f"benchmarks.on_gpu.{SECTIONS[name]}").run(machine, report)

    failing(section, report, BackendUnavailable)


def head(report: Report, machine: Machine, command: Sequence[str]) -> None:
    """The machine and its versions."""
    try:
        found = machine.driver().properties(0)
        title = f"{found.name} ({found.memory / 2**30:.0f} GiB, compute capability {'{}.{}'.format(*found.capability)})"
    except Exception as error:  # what is wrong with the driver is said by each section
        title = f"no NVIDIA GPU: {error}"
    report.text(f"# {time.strftime('%Y-%m-%d')}, {title}")
    there = {name: known for name in _PACKAGES if (known := _version(name))}
    packages = ", ".join(f"{name} {known}" for name, known in there.items())
    report.text(f"\n{_driver()}; {_processor()}; Python {platform.python_version()}, {packages}")
    report.text(f"\n$ python -m benchmarks.gpu {' '.join(command)}".rstrip())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "driver unknown: no nvidia-smi"
    return f"driver, clock, power: {done.stdout.splitlines()[0]}" if done.stdout else "driver unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {model}"


class Tee:
    """Lines to the standard output, and to a file; flushed, so that they are there whatever follows."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("w", encoding="utf-8") if path else None

    def __call__(self, text: str) -> None:
        print(text, end="", flush=True)
        if self._file:
            self._file.write(text)
            self._file.flush()


def in_a_process(name: str, arguments: Sequence[str], seconds: float, write: Callable[[str], None]) -> None:
    """A section, and what became of its process. It has `seconds`, and is ended then."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", name, *arguments, "--limit", f"{seconds - _END:.0f}"]
    root = Path(__file__).parents[1]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, process_group=0)
    assert child.stdout is not None
    end = Timer(seconds, _kill, [child])
    end.start()
    try:
        for line in child.stdout:
            write(line)
        status = child.wait()
    finally:
        end.cancel()
        if child.poll() is None:
            _kill(child)
        child.stdout.close()
    if status:
        write(f"\nfailed: the section's process ended with {status}{' (killed)' if status == -9 else ''}\n")


def _kill(child: subprocess.Popen[str]) -> None:
    """With the servers that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def main() -> None:
    asked = _asked()
    started = time.monotonic()
    if asked.child:
        machine = Machine(Models(asked.folder, asked.yolov5n, asked.picture), asked.seconds)
        run_section(asked.child, machine, Report(lambda text: print(text, end="", flush=True), started + asked.limit))
        return
    write = Tee(asked.out)
    with tempfile.TemporaryDirectory(prefix="visionpool-") as folder:
        machine = Machine(Models(Path(folder)), asked.seconds)
        head(Report(write), machine, sys.argv[1:])
        files = [(flag, path) for flag, path in (("--yolov5n", asked.yolov5n), ("--picture", asked.picture)) if path]
        arguments = ["--folder", folder, "--seconds", str(asked.seconds)]
        arguments += [text for flag, path in files for text in (flag, str(path.resolve()))]
        for name in asked.only:
            left = started + asked.limit - time.monotonic()
            write(f"\n## {name}\n")
            if left < 2 * _END:
                write("\nnot run: no time left\n")
            else:
                in_a_process(name, arguments, left, write)
    write(f"\nall of it took {time.monotonic() - started:.0f} s\n")


def _sections(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    return names


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the file to write as well")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all of it")
    parser.add_argument("--only", type=_sections, default=list(SECTIONS), help=", ".join(SECTIONS))
    parser.add_argument("--yolov5n", type=Path, help="an export with an open batch; unset: VISIONPOOL_TESTDATA's")
    parser.add_argument(
        "--picture", type=Path, help="a photograph as JPEG; unset: VISIONPOOL_TESTDATA's, or one that is made"
    )
    parser.add_argument("--child", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
