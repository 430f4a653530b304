"""What is found where a model was looked for, and cannot be read: which format it is, and which tool makes one of it that can.

`files` asks for files and folders that are no model, `loader` for weights that a backend has refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from visionpool.errors import InvalidModel


@dataclass(frozen=True, slots=True)
class Format:
    """A format that is not read. `certain`: a file of this name is a model, and not perhaps something else."""

    what: str
    hint: str
    certain: bool = True


_TORCH = Format(
    "a PyTorch checkpoint, not an export",
    "for Ultralytics: yolo export model=FILE format=onnx; for others in Python: torch.onnx.export(model.eval(), example, "
    "'model.onnx')",
)
_KERAS = Format(
    "a Keras model",
    "in Python: keras.models.load_model(FILE).export('saved_model'), and serve the folder saved_model; or python -m "
    "tf2onnx.convert --keras FILE --output model.onnx",
)
_TF_CHECKPOINT = Format(
    "a part of a TensorFlow checkpoint, not an export",
    "python -m tf2onnx.convert --checkpoint NAME.meta --inputs INPUT:0 --outputs OUTPUT:0 --output model.onnx",
)
_CAFFE = Format(
    "a Caffe model",
    "x2paddle --framework caffe --prototxt FILE.prototxt --weight FILE.caffemodel --save_dir OUT, and serve OUT/inference_model",
)
_NCNN = Format(
    "an ncnn model", "ncnn is not read, nor converted back: export the model it was made from to ONNX", certain=False
)
_CORE_ML = Format("a Core ML model", "Core ML is not converted back: export the model it was made from to ONNX")
_PADDLE_CHECKPOINT = Format(
    "a Paddle checkpoint of the training, not an export",
    "PaddleDetection, PaddleClas and PaddleOCR: python tools/export_model.py -c CONFIG -o weights=FILE (for the latter two "
    "Global.pretrained_model=FILE); PaddleSeg: python tools/export.py --config CONFIG --model_path FILE",
)
_SAFETENSORS = Format(
    "weights without a program",
    "Hugging Face: optimum-cli export onnx --model FOLDER OUT; for others torch.onnx.export in Python",
)
_LANGUAGE = Format("a language model of llama.cpp", "vision models are served here: export to ONNX what is one")
_UFF = Format("TensorRT's old form of a TensorFlow graph", "serve the frozen .pb that it was made from")
_DEVICE_ONLY = Format("compiled for one kind of chip", "serve the .onnx, .pb or .tflite file that it was compiled from")
_MXNET = Format(
    "an MXNet model",
    "in Python: mxnet.onnx.export_model('NAME-symbol.json', 'NAME-0000.params', [(1, 3, 224, 224)], 'float32', 'model.onnx')",
    certain=False,
)
_MOBILE = Format(
    "a model for a runtime of phones", "that is not converted back: export the model it was made from to ONNX"
)
_PICKLE = Format("pickled Python objects", "scikit-learn: skl2onnx.to_onnx(model, example) in Python", certain=False)
_TF_JS = Format(
    "a TensorFlow.js model",
    "tensorflowjs_converter --input_format=tfjs_layers_model --output_format=keras_saved_model FILE saved_model, and serve "
    "saved_model",
    certain=False,
)
_GRAPH_TEXT = Format(
    "a TensorFlow graph as text", "write it in binary, frozen: tf.io.write_graph(graph, '.', 'model.pb', as_text=False)"
)
_ARCHIVE = Format("an archive", "unpack it (tar -xf FILE, unzip FILE) and serve what is in it", certain=False)
_IR_WEIGHTS = Format(
    "weights without their model",
    "name the .xml file of the OpenVINO IR beside it (ncnn: export to ONNX)",
    certain=False,
)
_PADDLE_WEIGHTS = Format(
    "the weights of a Paddle export, without their program",
    "its .pdmodel, or Paddle 3's inference.json, belongs beside it",
)
_PADDLE_PROGRAM = Format(
    "a Paddle 3 program without its weights", "the .pdiparams file of the same name, from the export, belongs beside it"
)
_PADDLE_1 = Format(
    "a program of Paddle 1",
    "with Paddle 2: paddle.static.load_inference_model, then paddle.static.save_inference_model, which writes .pdmodel and "
    ".pdiparams",
)

_BY_SUFFIX: dict[str, Format] = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".pt2", ".torchscript"), _TORCH),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), _KERAS),
    **dict.fromkeys((".index", ".meta"), _TF_CHECKPOINT),
    **dict.fromkeys((".caffemodel", ".prototxt"), _CAFFE),
    **dict.fromkeys((".mlmodel", ".mlpackage", ".mlmodelc"), _CORE_ML),
    **dict.fromkeys((".pdparams", ".pdopt"), _PADDLE_CHECKPOINT),
    **dict.fromkeys((".gguf", ".ggml"), _LANGUAGE),
    **dict.fromkeys((".rknn", ".om", ".hef", ".dlc", ".blob"), _DEVICE_ONLY),
    **dict.fromkeys((".nb", ".mnn", ".ort", ".tnnmodel"), _MOBILE),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _PICKLE),
    **dict.fromkeys((".tar", ".zip", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar", ".mar"), _ARCHIVE),
    ".safetensors": _SAFETENSORS,
    ".uff": _UFF,
    ".params": _MXNET,
    ".param": _NCNN,
    ".pbtxt": _GRAPH_TEXT,
    ".pdiparams": _PADDLE_WEIGHTS,
    ".bin": _IR_WEIGHTS,
}
# What JSON files of models hold within their first kilobytes.
_BY_JSON = {'"magic":"pir"': _PADDLE_PROGRAM, '"modelTopology"': _TF_JS, '"arg_nodes"': _MXNET, '"class_name"': _KERAS}


def format_of(path: Path) -> Format | None:
    """The format of a file, or a folder that some programs take for one; None for one that says nothing."""
    if path.is_dir():
        return _CORE_ML if path.suffix in (".mlpackage", ".mlmodelc") else None
    if path.name == "__model__":
        return _PADDLE_1
    if path.name == "checkpoint" or ".data-" in path.name:
        return _TF_CHECKPOINT
    if path.name.endswith((".onnx.data", ".onnx_data")):
        return Format("the weights of an ONNX file", "name the .onnx file that they belong to", certain=False)
    suffix = path.suffix.lower()
    return _format_of_json(path) if suffix == ".json" else _BY_SUFFIX.get(suffix)


def refusal(path: Path) -> InvalidModel | None:
    """Why the file at `path` is not served, where its format is known."""
    found = format_of(path)
    return InvalidModel(f"{path.name} is {found.what}", hint=found.hint) if found else None


def refusal_of_folder(folder: Path, *, certain: bool) -> InvalidModel | None:
    """Why a folder in which no model was found is none. `certain`: only where a file in it can be nothing else than a model."""
    versions = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name.isdecimal()]
    for place in (folder, *versions):
        known = [(child, format_of(child)) for child in sorted(place.iterdir()) if not child.name.startswith(".")]
        telling = [(child, found) for child, found in known if found and (found.certain or not certain)]
        for child, found in sorted(telling, key=lambda entry: not entry[1].certain):
            return InvalidModel(f"{child} is {found.what}", hint=found.hint)
    return None


def _format_of_json(path: Path) -> Format | None:
    try:
        with path.open("rb") as file:
            start = file.read(4096).decode(errors="replace")
    except OSError:
        return None
    packed = "".join(start.split())
    if path.name == "inference.json":
        return _PADDLE_PROGRAM
    return next((found for mark, found in _BY_JSON.items() if mark in packed), None)
