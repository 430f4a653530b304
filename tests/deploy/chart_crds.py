"""The types of the operators' resources: those that npm's @kubernetes-models make of the operators' own CRDs.

Twice over, as they see different things: TypeScript's compiler refuses fields that a type does not have, the packages' validators
what breaks a pattern, an enumeration or a bound. Both run once for all documents.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart_cache import kept

PACKAGES = (
    "@kubernetes-models/keda@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0",
    "@kubernetes-models/gateway-api@2.0.0",
    "@kubernetes-models/cert-manager@6.0.0",
    "typescript@5.9.3",
)
MODULES = {
    "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
    "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
    "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1",
    "cert-manager.io/v1": "@kubernetes-models/cert-manager/cert-manager.io/v1",
}
TSCONFIG = {
    "compilerOptions": {
        "strict": True,
        "noEmit": True,
        "skipLibCheck": True,
        "target": "es2022",
        "module": "nodenext",
        "types": [],
    },
    "files": ["documents.mts"],
}
VALIDATE = """
import documents from "./documents.json" with {type: "json"};
for (const [number, {module, document}] of documents.entries()) {
  const model = (await import(`${module}/${document.kind}`))[document.kind];
  try { new model(document).validate(); } catch (error) { console.log(`documents[${number}]: ${error.message}`); }
}
"""


def node_modules() -> Path:
    """The folder with the packages; skips the test where they cannot be had."""
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, and with it the CRDs' types: install Node 20 or newer")
    name = f"crds-{hashlib.sha256(repr(PACKAGES).encode()).hexdigest()[:12]}"
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund")
    return kept(name, "npm", "install", *quiet, *PACKAGES, "--prefix") / "node_modules"


def faults(documents: list[dict[str, Any]], folder: Path) -> list[str]:
    """What the CRDs' types refuse, each beginning with `documents[N]`; `folder` is an empty one to work in."""
    (folder / "node_modules").symlink_to(node_modules())
    named = [{"module": MODULES[each["apiVersion"]], "document": each} for each in documents]
    (folder / "documents.json").write_text(json.dumps(named))
    (folder / "documents.mts").write_text("\n".join(_literal(number, each) for number, each in enumerate(named)))
    (folder / "tsconfig.json").write_text(json.dumps(TSCONFIG))
    (folder / "validate.mjs").write_text(VALIDATE)
    typed = _said(folder, "node_modules/typescript/bin/tsc", "--pretty", "false")
    assert not [line for line in typed if "error TS2307" in line], typed  # no such module
    return [_placed(line) for line in typed] + _said(folder, "--no-warnings", "validate.mjs")


def _literal(number: int, named: dict[str, Any]) -> str:
    """One line for each document, so that the compiler's line is its number."""
    kind = named["document"]["kind"]
    return f'export const document{number}: import("{named["module"]}").I{kind} = {json.dumps(named["document"])};'


def _placed(line: str) -> str:
    """documents.mts(3,10): error ... -> documents[2]: error ..."""
    place, _, message = line.partition(": ")
    row = place.partition("(")[2].partition(",")[0]
    return f"documents[{int(row) - 1}]: {message}" if row.isdigit() else line


def _said(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["node", *arguments], check=False, cwd=folder, capture_output=True, text=True, timeout=120)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()
