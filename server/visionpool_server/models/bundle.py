"""What a model is: the schema of model.yaml. Everything in it is optional; the files themselves say most of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from visionpool.errors import InvalidModel

from visionpool_server.backends import BACKENDS, Precision
from visionpool_server.families import ALIASES, FAMILIES
from visionpool_server.imaging.recipe import Size

Task = Literal["classification", "detection", "segmentation", "ocr", "keypoints", "faces", "embedding", "tensor"]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
Dimension = Annotated[int, Field(ge=-1, le=2**31 - 1)]  # -1 or 0: left dynamic
Extent = Annotated[int, Field(ge=1, le=2**31 - 1)]
Url = Annotated[str, Field(pattern=r"^grpcs?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")]
_TAG = "#"  # marks which form of a value was meant; no part of a key's path


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _core_list(said: object) -> object:
    """3 is a number in YAML, and 0-7 is none."""
    if type(said) is int and said >= 0:
        return str(said)
    if isinstance(said, str):
        return said
    raise ValueError("numbers and ranges are expected, as 0-3,8, or near")


def _at_least_one(entries: tuple[Any, ...]) -> tuple[Any, ...]:
    """Not Field(min_length=1), which counts wrong entries as none, and says so besides what is wrong with them."""
    if not entries:
        raise ValueError("an empty list makes no workers; leave it out for what the device runs best")
    return entries


Cores = Annotated[str, BeforeValidator(_core_list)]


class Profile(_Part):
    """The shapes of one input, as trtexec's --minShapes, --optShapes and --maxShapes say them."""

    min: tuple[Extent, ...]
    opt: tuple[Extent, ...]
    max: tuple[Extent, ...]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max are shapes of one tensor, with as many dimensions each")
        if any(not low <= usual <= high for low, usual, high in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError("in each dimension min is at most opt, and opt at most max")
        return self


class Runtime(_Part):
    """Which runtime, on which device, and how. `options`: the runtime's own properties, passed through."""

    backend: str | None = None
    url: Url | None = None  # of the server that runs it, with backend: remote
    model: str | None = Field(None, min_length=1)  # its name there, if it is another
    device: str | None = None
    precision: Precision | None = None
    shapes: dict[str, tuple[Dimension, ...]] = {}
    profiles: tuple[dict[str, Profile], ...] = ()  # TensorRT: ranges of shapes that the engine is built for
    plugins: tuple[str, ...] = ()  # TensorRT: libraries and Python files of layers, beside model.yaml
    prepare_on: Literal["cpu", "gpu"] = "cpu"  # where pictures are resized; gpu: on the one that runs the model
    max_shapes: int = Field(8, ge=1, le=10_000)  # of dynamic inputs: so many stay compiled
    cpu_operators: tuple[str, ...] = ()
    cache_dir: Path | None = None
    options: dict[str, Any] = {}


class Workers(_Part):
    """So many workers on a device; `count` None: what the device runs best. What it does not say, `runtime` says."""

    device: str | None = None
    count: int | None = Field(None, ge=1, le=256)
    backend: str | None = None
    precision: Precision | None = None
    cores: Cores | None = None  # of the CPU, on which their threads stay; "near": those close to their GPU
    options: dict[str, Any] = {}  # over runtime.options


class Batching(_Part):
    max_batch_size: int | None = Field(None, ge=1, le=1024)
    sizes: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = ()  # fixed sizes to compile for; others are padded
    max_queue_delay_us: int = Field(0, ge=0, le=10_000_000)
    max_queue_size: int = Field(128, ge=1, le=100_000)
    timeout_ms: Milliseconds = 60_000
    hang_timeout_ms: Milliseconds = 20_000  # a worker that takes longer for one batch is replaced


class Postprocess(_Part):
    score_threshold: Share | None = None
    iou_threshold: Share | None = None
    top_k: int | None = Field(None, ge=1)
    max_detections: int | None = Field(None, ge=1)
    compact: bool | None = None
    score_map: bool | None = None
    suppressed: bool | None = None  # YOLO of masks, joints, angles: whether the graph leaves one row for each object
    kpt_shape: tuple[Annotated[int, Field(ge=1, le=1000)], Annotated[int, Field(ge=2, le=3)]] | None = (
        None  # of a pose model
    )
    activation: Literal["none", "sigmoid", "softmax"] | None = None  # what turns the graph's numbers into scores
    multi_label: bool | None = None  # classifiers: any number of classes may hold
    default_class: int | None = Field(None, ge=0)  # classifiers: what a picture is of where nothing else scores enough
    normalize: bool | None = None  # embeddings: to length 1
    output: str | None = Field(None, min_length=1)  # segmentation, classifiers, embeddings: which of several outputs
    decoded: bool | None = None  # YOLOX: whether its boxes are in pixels already
    map_threshold: Share | None = None  # text detectors: from which a pixel counts as text
    unclip_ratio: float | None = Field(None, ge=0, le=10)  # text detectors: how much boxes grow
    box_threshold: Share | None = None  # ocr: the least mean of a box, the score_threshold of its text detector
    direction_threshold: Share | None = None  # ocr: over which a line that is upside down is turned


class Steps(_Part):
    """Of an OCR pipeline: folders or files relative to its model.yaml, or names of models served beside it."""

    detect: str | None = None
    classify: str | None = None
    read: str | None = None


def _form(value: Any) -> str:
    """Which form of `labels` or `workers` a value has, so that only the mistakes of that form are reported."""
    if isinstance(value, (list, tuple)):
        return _TAG + "list"
    return _TAG + "map" if isinstance(value, dict) else _TAG + "plain"


Labels = Annotated[
    Annotated[str, Tag(_TAG + "plain")]
    | Annotated[tuple[str, ...], Tag(_TAG + "list")]
    | Annotated[dict[Annotated[int, Field(ge=0, le=1_000_000)], str], Tag(_TAG + "map")],
    Discriminator(_form),
]
WorkerGroups = Annotated[
    Annotated[Annotated[int, Field(ge=1, le=256)], Tag(_TAG + "plain")]
    | Annotated[tuple[Workers, ...], AfterValidator(_at_least_one), Tag(_TAG + "list")],
    Discriminator(_form),
]


class Bundle(_Part):
    """One model.yaml, or what discovery found instead of one."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    task: Task | None = None
    family: str | None = None
    weights: str | None = None
    labels: Labels | None = None  # a file, a list, or a map from id to name
    input_size: Size | None = None  # (height, width), where neither file nor preprocess says it
    runtime: Runtime = Runtime()
    workers: WorkerGroups | None = None
    batching: Batching = Batching()
    preprocess: tuple[dict[str, Any] | str, ...] | None = None  # a step without arguments is just its name
    # fast: JPEGs over twice the model's size are decoded smaller; gpu: on the one that runs the model
    decode: Literal["exact", "fast", "gpu"] = "exact"
    postprocess: Postprocess = Postprocess()
    steps: Steps | None = None  # of task: ocr
    aliases: dict[str, str] = {}  # other names for inputs, outputs and `result`, for clients that ask for tensors
    raw_pictures: Literal["rgb", "bgr"] = "rgb"  # channel order of pictures that come as raw pixels

    @classmethod
    def checked(cls, source: object, data: dict[str, Any]) -> Self:
        """From what the file `source` says. Raises InvalidModel that names the wrong key and the ones allowed."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InvalidModel(f"{source}: {_explained(error)}") from error

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.family is not None and self.family not in {**FAMILIES, **ALIASES}:
            raise ValueError(f"family: unknown {self.family!r}; allowed: {', '.join([*FAMILIES, *ALIASES])}")
        runtime, entries = self.runtime, self.workers if isinstance(self.workers, tuple) else ()
        named = {f"workers.{i}.backend": entry.backend for i, entry in enumerate(entries)}
        for key, backend in {"runtime.backend": runtime.backend, **named}.items():
            if backend is not None and backend not in BACKENDS:
                raise ValueError(f"{key}: unknown {backend!r}; allowed: {', '.join(BACKENDS)}")
        if runtime.backend != "remote" and "remote" in named.values():
            raise ValueError("workers: remote is a backend for all of a model; say runtime.backend: remote")
        if runtime.backend == "remote" and runtime.url is None:
            raise ValueError("runtime.backend: remote needs the server's address; say runtime.url: grpc://HOST:PORT")
        if runtime.backend != "remote" and (runtime.url or runtime.model):
            key = "url" if runtime.url else "model"
            raise ValueError(f"runtime.{key} means nothing without runtime.backend: remote")
        return self

    def over(self, found: Bundle) -> Bundle:
        """This bundle, with whatever it does not say taken from `found`; the parts are merged key by key."""
        values: dict[str, Any] = {}
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(found, name)
            if isinstance(mine, _Part) and isinstance(theirs, _Part):
                said = {key: getattr(mine, key) for key in mine.model_fields_set}
                values[name] = theirs.model_copy(update=said)
            else:
                values[name] = mine if name in self.model_fields_set else theirs
        return self.model_copy(update=values)


def read_bundle(path: Path) -> Bundle:
    """The model.yaml at `path`. Raises InvalidModel that names the wrong key and the ones allowed."""
    data = read_yaml(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InvalidModel(f"{path}: a map of keys is expected", hint=f"allowed: {', '.join(Bundle.model_fields)}")
    return Bundle.checked(path, data)


def read_yaml(path: Path) -> Any:
    """What a YAML file says. Raises InvalidModel where it cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML lets through whatever the values' own constructors raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidModel(f"{path}: not readable as YAML: {reason}") from error


def _explained(error: ValidationError) -> str:
    """One line a mistake: the key's path, what is wrong, and for an unknown key the allowed ones."""
    lines = []
    for mistake in error.errors():
        location = mistake["loc"]
        if len(location) > 1 and location[0] in ("labels", "workers") and str(location[1]).startswith(_TAG):
            location = location[:1] + location[2:]
        path = ".".join(str(part) for part in location)
        if mistake["type"] == "extra_forbidden":
            lines.append(f"unknown key {path!r}; allowed here: {', '.join(_keys_beside(location))}")
        elif mistake["type"] == "union_tag_invalid":
            lines.append(f"{path}: a {type(mistake['input']).__name__} makes no sense here")
        else:
            message = mistake["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
            lines.append(f"{path}: {message}".removeprefix(": "))
    return "; ".join(lines)


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed where an unknown one stands: at the top, in a part, or in an entry of `workers` or `profiles`."""
    if len(location) == 1:
        return list(Bundle.model_fields)
    if location[1] == "profiles":
        return list(Profile.model_fields)
    parts: dict[str, type[_Part]] = {
        "runtime": Runtime,
        "workers": Workers,
        "batching": Batching,
        "postprocess": Postprocess,
        "steps": Steps,
    }
    return list(parts.get(str(location[0]), Bundle).model_fields)
