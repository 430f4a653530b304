"""What a model's file says of itself, read by each of the runtimes that will run it."""

from __future__ import annotations

from collections.abc import Mapping

from visionpool.errors import InvalidModel

from visionpool_server.backends import Backend, Signature, Source, TensorSpec
from visionpool_server.models.foreign import refusal
from visionpool_server.models.missing import missing_part


def read_signature(backends: Mapping[str, Backend], source: Source) -> Signature:
    """As the first of the backends tells it. Raises InvalidModel, also where another one calls the tensors otherwise: a
    request's tensors go to whichever worker is free."""
    (first, backend), *others = backends.items()
    signature = _read(backend, source)
    for name, other in others:
        theirs = _read(other, source)
        for kind, ours, read in (
            ("inputs", signature.inputs, theirs.inputs),
            ("outputs", signature.outputs, theirs.outputs),
        ):
            if sorted(spec.name for spec in ours) != sorted(spec.name for spec in read):
                raise InvalidModel(
                    f"the {kind} of this model are {_names(ours)} to {first}, and {_names(read)} to {name}: its workers cannot "
                    "share requests",
                    hint="say one backend for all of its workers in model.yaml",
                )
    return signature


def _names(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(spec.name for spec in specs) or "none"


def _read(backend: Backend, source: Source) -> Signature:
    """Raises InvalidModel, which says what is missing or what to do instead, where that is known."""
    try:
        return backend.read(source)
    except InvalidModel as error:
        if source.weights and (known := missing_part(source.weights) or refusal(source.weights)):
            raise known from error
        raise
