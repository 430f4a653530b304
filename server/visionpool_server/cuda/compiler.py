"""CUDA C++ to PTX or to a device's own code, by NVRTC, which needs neither a GPU nor a driver.

Nothing that runs in a server calls this: its kernels are compiled when the project is built (`scripts/kernels`). It is there
for that, for tests, and for kernels of your own. NVRTC comes with `pip install nvidia-cuda-nvrtc`, or with the CUDA toolkit.
Reference: https://docs.nvidia.com/cuda/nvrtc.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from visionpool.errors import BackendUnavailable

_WHEELS = "nvidia/cu*/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu*/bin", "nvidia/cuda_nvrtc/bin"  # where they lay it
_FILES = "libnvrtc.so.*", "nvrtc64_*.dll"
_SONAMES = "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"  # of a toolkit that the system's loader knows


class CompilationFailed(ValueError):
    """The source is wrong. `log`: what the compiler said, line by line."""

    def __init__(self, name: str, arch: str, log: str) -> None:
        super().__init__(f"{name} does not compile for {arch}:\n{log}")
        self.log = log


class Nvrtc:
    """One copy of the compiler. Raises BackendUnavailable where the file is none."""

    def __init__(self, path: str) -> None:
        try:
            self._library = ctypes.CDLL(path)
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise BackendUnavailable(f"{path} cannot be used as NVIDIA's runtime compiler: {error}") from error
        self.path = path

    @property
    def version(self) -> tuple[int, int]:
        """That of the CUDA toolkit it is a part of, which decides which drivers take its PTX."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def compile(self, source: str, arch: str, *, name: str = "kernels.cu", options: Sequence[str] = ()) -> bytes:
        """PTX for an `arch` such as compute_75, a cubin for one such as sm_90: either is an image for `Gpu.module`.

        Products and sums are not fused, so that they round as they do on a CPU. Raises CompilationFailed.
        """
        with ThreadPoolExecutor(
            1
        ) as thread:  # NVRTC leaves its thread in the locale C, where Python reads files as ASCII
            return thread.submit(self._compile, source, arch, name, options).result()

    def _compile(self, source: str, arch: str, name: str, options: Sequence[str]) -> bytes:
        flags = [f"--gpu-architecture={arch}", "--fmad=false", "--std=c++17", *options]
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        try:
            encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
            if self._library.nvrtcCompileProgram(program, len(flags), encoded):
                raise CompilationFailed(name, arch, self._text("ProgramLog", program).decode(errors="replace"))
            return self._text("CUBIN" if arch.startswith("sm_") else "PTX", program)
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _text(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.raw if what == "CUBIN" else text.value

    def _call(self, function: str, *arguments: object) -> None:
        if status := getattr(self._library, function)(*arguments):
            said = self._library.nvrtcGetErrorString(status).decode()
            raise BackendUnavailable(f"NVIDIA's runtime compiler fails: {function}: {said}")


def compile_kernels(source: str, arch: str, *, name: str = "kernels.cu") -> bytes:
    """As `Nvrtc.compile`, by the newest that is installed. Raises BackendUnavailable where none is."""
    return find_nvrtc().compile(source, arch, name=name)


@lru_cache(maxsize=8)
def find_nvrtc(major: int | None = None) -> Nvrtc:
    """The newest that is installed, or that of one major version of CUDA. Raises BackendUnavailable."""
    for path in _installed():
        if major is None or _major(path) == major:
            return Nvrtc(path)
    for soname in _SONAMES:
        try:
            nvrtc = Nvrtc(soname)
        except BackendUnavailable:
            continue
        if major is None or nvrtc.version[0] == major:
            return nvrtc
    raise BackendUnavailable(
        f"NVIDIA's runtime compiler{f' of CUDA {major}' if major else ''} is not installed",
        hint=f"pip install {'nvidia-cuda-nvrtc-cu12' if major == 12 else 'nvidia-cuda-nvrtc'}",
    )


def _installed() -> list[str]:
    return sorted(map(str, _wheels()), key=_major, reverse=True)


def _wheels() -> Iterator[Path]:
    for folder in sys.path:
        for place in _WHEELS:
            for file in _FILES:
                yield from (
                    found for found in Path(folder or ".").glob(f"{place}/{file}") if "builtins" not in found.name
                )


def _major(path: str) -> int:
    """libnvrtc.so.12 is of 12, nvrtc64_130_0.dll of 13."""
    number = re.search(r"\.so\.(\d+)|nvrtc64_(\d+)\d_", path)
    return int(number[1] or number[2]) if number else 0
