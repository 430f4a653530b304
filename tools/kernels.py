"""The kernels of visionpool_server/cuda/kernels as PTX, which drivers turn into their device's own code when they load it.

An old compiler makes it, so that old drivers read it: that of CUDA 12.0 (PTX 8.0), which drivers from 525 on do. Run by
scripts/kernels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visionpool.errors import BackendUnavailable
from visionpool_server.cuda.compiler import find_nvrtc

FOLDER = Path(__file__).parent.parent / "server/visionpool_server/cuda/kernels"
COMPILER = 12, 0  # pinned in pyproject.toml
OLDEST = "compute_75"  # Turing; newer devices run it too


def compiled(source: Path) -> str:
    """The PTX of a kernel's file: the same text on every machine. Raises BackendUnavailable, CompilationFailed."""
    nvrtc = find_nvrtc(COMPILER[0])
    if nvrtc.version != COMPILER:
        found, wanted = (".".join(map(str, version)) for version in (nvrtc.version, COMPILER))
        raise BackendUnavailable(
            f"kernels are compiled with NVRTC {wanted}, and {nvrtc.path} is {found}",
            hint="pip install 'visionpool[dev]'",
        )
    return nvrtc.compile(source.read_text("utf-8"), OLDEST, name=source.name).decode()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/kernels", description="Compiles the CUDA kernels to PTX.")
    parser.add_argument("--check", action="store_true", help="change nothing, and fail where one is not current")
    check: bool = parser.parse_args().check
    for source in sorted(FOLDER.glob("*.cu")):
        target = source.with_suffix(".ptx")
        try:
            fresh = compiled(source)
        except BackendUnavailable as error:  # there is no wheel of it for some machines
            print(f"{target.name} is not {'checked' if check else 'made'}: {error}", file=sys.stderr)
            return 0 if check else 1
        if not check:
            target.write_text(fresh, "utf-8")
        elif not target.exists() or target.read_text("utf-8") != fresh:
            print(f"{target.name} is not what {source.name} gives: run scripts/kernels", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
