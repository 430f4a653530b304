"""`sbom.py PYTHON.json DPKG`: the list of Python's packages (CycloneDX JSON), with those of Debian or Ubuntu added to it.

DPKG is the folder of dpkg's database. The result goes to stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote


def system_packages(database: str, distribution: str) -> list[dict[str, Any]]:
    """The installed packages, as CycloneDX components."""
    form = "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n"
    command = ["dpkg-query", f"--admindir={database}", "--show", f"--showformat={form}"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split("\t") for line in listed.splitlines() if line.startswith("ii")]
    return [_component(name, version, architecture, distribution) for _, name, version, architecture in rows]


def _component(name: str, version: str, architecture: str, distribution: str) -> dict[str, Any]:
    purl = f"pkg:deb/{distribution}/{quote(name)}@{quote(version)}?arch={architecture}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def distribution() -> str:
    """debian or ubuntu."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["ID"].strip('"')


def main() -> None:
    python, database = sys.argv[1:]
    bill = json.loads(Path(python).read_text(encoding="utf-8"))
    bill["components"] += system_packages(database, distribution())
    json.dump(bill, sys.stdout, indent=1)


main()
