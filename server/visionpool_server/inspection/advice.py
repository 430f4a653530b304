"""What to write in model.yaml so that the model runs well on the device that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from visionpool_server.backends.survey import Support
from visionpool_server.inspection.identity import Identified
from visionpool_server.inspection.report import Placement, ShapeProposal


def model_yaml(
    known: Identified,
    proposed: Sequence[ShapeProposal],
    placement: Placement | None,
    devices: Sequence[Support],
) -> str:
    """The part `runtime:`, to paste; empty where nothing has to be set."""
    lines = []
    device = _device(known.device, placement, devices)
    if device != "CPU":
        lines.append(f"  device: {device}")
        lines += _shapes(proposed)
    if operators := _operators(known, placement, device):
        lines.append(f"  cpu_operators: [{', '.join(operators)}]")
    return "\n".join(["runtime:", *lines]) + "\n" if lines else ""


def _device(device: str, placement: Placement | None, devices: Sequence[Support]) -> str:
    """That asked for, with the CPU behind a single device that lacks operators."""
    alone = next((entry for entry in devices if entry.device == device), None)
    cpu = any(entry.device == "CPU" for entry in devices)
    if placement and alone and alone.unsupported and device != "CPU" and cpu:
        return f"HETERO:{device},CPU"
    return device


def _operators(known: Identified, placement: Placement | None, device: str) -> Sequence[str]:
    if not device.startswith("HETERO:"):
        return ()
    if placement and placement.proposal:
        return placement.proposal.cpu_operators
    return known.options.cpu_operators


def _shapes(proposed: Sequence[ShapeProposal]) -> list[str]:
    needed = [proposal for proposal in proposed if proposal.needed]
    if not needed:
        return []
    lines = ["  shapes:"]
    for proposal in needed:
        doubt = "   # a guess: the size that your pictures have" if proposal.guessed else ""
        lines.append(f"    {_key(proposal.input)}: {list(proposal.shape)}{doubt}")
    return lines


def _key(name: str) -> str:
    """A tensor's name as a key of YAML: quoted where it could be read as something else."""
    plain = name.replace("_", "").replace(".", "").isalnum() and not name[0].isdecimal()
    return name if plain else "'" + name.replace("'", "''") + "'"
