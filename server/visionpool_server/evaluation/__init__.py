"""How good a model is on pictures of which the truth is known, and where two models differ: what `visionpool evaluate` shows.

    with open_model("yolov8n.onnx", Defaults()) as model:
        report = evaluate(model, read_dataset(Path("coco")))
        report.metrics["map50_95"]

    with open_model("yolov8n.onnx", Defaults()) as full, open_model("yolov8n_int8", Defaults()) as small:
        comparison = compare(full, small, read_dataset(Path("pictures")))
        comparison.agreement, comparison.worst(10)

`datasets/` reads what is there, `subjects` asks, `judges/` and `agreement` judge, `report` is what they say; `plots/`,
`tables` and `worst` show it.
"""

from visionpool_server.evaluation.datasets import read_dataset
from visionpool_server.evaluation.report import Comparison, PictureDifference, Report
from visionpool_server.evaluation.run import Settings, compare, evaluate
from visionpool_server.evaluation.subjects import Subject, open_model, open_served
from visionpool_server.evaluation.truth import Dataset

__all__ = [
    "Comparison",
    "Dataset",
    "PictureDifference",
    "Report",
    "Settings",
    "Subject",
    "compare",
    "evaluate",
    "open_model",
    "open_served",
    "read_dataset",
]
