"""The shapes that an engine was built for: one or more profiles, each with a range for every input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from visionpool.errors import InvalidRequest

from visionpool_server.backends import ShapeRange
from visionpool_server.backends.tensorrt.messages import no_profile
from visionpool_server.backends.tensorrt.tensors import Tensor

Shapes = Mapping[str, tuple[int, ...]]  # of inputs


@dataclass(frozen=True, slots=True)
class Profile:
    """`shapes`: by input. `values`: of inputs that are read in RAM, what their numbers may be, where that is bounded."""

    shapes: Mapping[str, ShapeRange]
    values: Mapping[str, ShapeRange]

    def misfit(self, shapes: Shapes, values: Shapes) -> str | None:
        """The first input that is out of range."""
        for name, shape in shapes.items():
            if not _within(shape, self.shapes[name]) or not _within(values.get(name, ()), self.values.get(name)):
                return name
        return None

    def distance(self, shapes: Shapes) -> float:
        """How far from what it is tuned for."""
        return sum(
            abs(log(max(size, 1) / max(best, 1)))
            for name, shape in shapes.items()
            for size, best in zip(shape, self.shapes[name].opt, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Ranges:
    profiles: tuple[Profile, ...]

    def choose(self, shapes: Shapes, values: Shapes, current: int | None = None) -> int:
        """The profile that is tuned best for these, `current` if it is as good. Raises InvalidRequest where none fits."""
        misfits = [profile.misfit(shapes, values) for profile in self.profiles]
        fitting = [index for index, misfit in enumerate(misfits) if misfit is None]
        if not fitting:
            raise self._refused(next(name for name in misfits if name is not None), shapes, values)
        return min(fitting, key=lambda index: (self.profiles[index].distance(shapes), index != current, index))

    def sizes(self, name: str) -> list[int]:
        """What the first dimension of an input may be, ascending."""
        ranges = (profile.shapes[name] for profile in self.profiles)
        return sorted({size for one in ranges if one.min for size in range(one.min[0], one.max[0] + 1)})

    def _refused(self, name: str, shapes: Shapes, values: Shapes) -> InvalidRequest:
        all_shapes = [profile.shapes[name] for profile in self.profiles]
        if any(_within(shapes[name], one) for one in all_shapes) and name in values:
            all_values = [profile.values[name] for profile in self.profiles if name in profile.values]
            error = no_profile(name, values[name], all_values)
            return InvalidRequest(error.message.replace("of shape", "of values"), hint="runtime.profiles in model.yaml")
        return no_profile(name, shapes[name], dict.fromkeys(all_shapes))


def ranges_of(engine: Any, tensors: Sequence[Tensor]) -> Ranges:
    """`engine`: a trt.ICudaEngine."""
    inputs = [tensor for tensor in tensors if tensor.is_input]
    return Ranges(tuple(_profile(engine, inputs, index) for index in range(max(1, engine.num_optimization_profiles))))


def _profile(engine: Any, inputs: Sequence[Tensor], index: int) -> Profile:
    shapes, values = {}, {}
    for tensor in inputs:
        if -1 in tensor.shape:
            low, best, high = (tuple(dims) for dims in engine.get_tensor_profile_shape(tensor.name, index))
            shapes[tensor.name] = ShapeRange(low, best, high)
        else:
            shapes[tensor.name] = ShapeRange(tensor.shape, tensor.shape, tensor.shape)
        if tensor.on_host and (said := _said_values(engine, tensor.name, index)):
            values[tensor.name] = ShapeRange(*(tuple(each) for each in said))
    return Profile(shapes, values)


def _said_values(engine: Any, name: str, index: int) -> Sequence[Sequence[int]]:
    """The least, the best and the largest numbers of an input that is read in RAM; empty where the plan says none."""
    try:
        # The profile comes before the name here, whatever the binding's documentation says.
        return engine.get_tensor_profile_values(index, name)  # type: ignore[no-any-return]
    except RuntimeError:  # of an input that is in RAM and says no shape, or whose own length is open
        return ()


def _within(sizes: tuple[int, ...], allowed: ShapeRange | None) -> bool:
    if allowed is None:
        return True
    if len(sizes) != len(allowed.min):
        return False
    return all(low <= size <= high for low, size, high in zip(allowed.min, sizes, allowed.max, strict=True))
