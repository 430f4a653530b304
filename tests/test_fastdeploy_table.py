"""docs/fastdeploy.md and docs/intel.md: what they say of FastDeploy is complete, and what they say of visionpool is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import BaseModel
from visionpool_server.cli import app
from visionpool_server.families import ALIASES, FAMILIES
from visionpool_server.models.bundle import Batching, Bundle, Postprocess, Runtime
from visionpool_server.models.files import find_models
from visionpool_server.models.loader import Defaults, load_model
from visionpool_server.models.preprocess import recipe_from

from tests import tiny_models

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("fastdeploy.md", "intel.md")}
PARTS: dict[str, type[BaseModel]] = {"runtime": Runtime, "batching": Batching, "postprocess": Postprocess}

# All of FastDeploy 1.x: `RuntimeOption` in python/fastdeploy/runtime.py, over its versions.
METHODS = re.findall(
    r"\w+",
    """
set_model_path set_model_buffer use_cpu use_gpu use_kunlunxin use_rknpu2 use_sophgo use_ascend use_ipu set_ipu_config
set_cpu_thread_num set_ort_graph_opt_level use_paddle_backend use_paddle_infer_backend use_poros_backend use_ort_backend
use_tvm_backend use_trt_backend use_openvino_backend use_lite_backend use_paddle_lite_backend use_om_backend
set_lite_device_names set_lite_context_properties set_lite_model_cache_dir set_lite_dynamic_shape_info
set_lite_subgraph_partition_path set_lite_subgraph_partition_config_buffer
set_lite_mixed_precision_quantization_config_path enable_lite_fp16 disable_lite_fp16 set_lite_power_mode
set_paddle_mkldnn enable_paddle_mkldnn disable_paddle_mkldnn set_paddle_mkldnn_cache_size
enable_paddle_log_info disable_paddle_log_info delete_paddle_backend_pass
set_openvino_device set_openvino_shape_info set_openvino_cpu_operators
set_trt_input_shape set_trt_input_data set_trt_cache_file enable_trt_fp16 disable_trt_fp16 set_trt_max_workspace_size
set_trt_max_batch_size enable_paddle_to_trt enable_paddle_trt_collect_shape disable_paddle_trt_collect_shape
disable_paddle_trt_ops enable_pinned_memory disable_pinned_memory set_external_raw_stream
enable_profiling disable_profiling disable_valid_backend_check enable_valid_backend_check
poros_option paddle_lite_option openvino_option ort_option trt_option paddle_infer_option
""",
)
OF_OPENVINO = ("set_device", "set_shape_info", "set_cpu_operators", "set_performance_hint", "set_stream_num")

# python/fastdeploy/vision/*/__init__.py, without the classes for preprocessing and postprocessing.
MODELS = re.findall(
    r"\w+",
    """
PPYOLOE PPYOLO PPYOLOv2 PaddleYOLOX PicoDet FasterRCNN YOLOv3 SOLOv2 MaskRCNN SSD PaddleYOLOv5 PaddleYOLOv6 PaddleYOLOv7
PaddleYOLOv8 RTMDet CascadeRCNN PSSDet RetinaNet PPYOLOESOD PPYOLOER FCOS TTFNet TOOD GFL YOLOv5 YOLOv5Lite YOLOv6 YOLOv7
YOLOv7End2EndORT YOLOv7End2EndTRT YOLOv8 YOLOv5Seg YOLOX YOLOR ScaledYOLOv4 NanoDetPlus FastestDet RKYOLOV5 RKYOLOX RKYOLOV7
Smoke CenterPoint Petr Caddn PaddleClasModel ResNet YOLOv5Cls PPShiTuV2Detector PPShiTuV2Recognizer PaddleSegModel
PPMatting MODNet RobustVideoMatting DBDetector Classifier Recognizer PPOCRv2 PPOCRv3 PPOCRv4 StructureV2Table
PPStructureV2Table StructureV2Layout StructureV2SERViLayoutXLMModel PPTinyPose SCRFD YOLOv5Face RetinaFace UltraFace BlazeFace
CenterFace YOLOv7Face ArcFace CosFace PartialFC VPL AdaFace FaceLandmark1000 PFLD PIPNet FSANet PPTracking PPMSVSR EDVR
BasicVSR AnimeGAN
""",
)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its own heading."""
    section = PAGES["fastdeploy.md"].partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    assert len(table) > 5
    return [[cell.strip() for cell in row] for row in table[2:]]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_each_method_of_runtime_option_has_its_line_once() -> None:
    written = [code for row in rows("RuntimeOption") for code in codes(row[0])]
    of_openvino = [code.partition(".")[2] for code in written if code.startswith("openvino_option.")]
    assert sorted(code for code in written if "." not in code) == sorted({*METHODS} - {"openvino_option"})
    assert {*OF_OPENVINO} <= {*of_openvino}


def test_each_method_is_given_a_setting_or_a_reason() -> None:
    for method, here in rows("RuntimeOption"):
        assert re.search(r"^(not needed|not served|later|as )|`", here), method


def test_each_model_class_has_its_line() -> None:
    written = {code.rpartition(".")[2] for row in rows("Model classes") for code in codes(row[0])}
    assert {*MODELS} <= written


def test_the_families_are_ours() -> None:
    named = [code for row in rows("Model classes") for code in codes(row[1])]
    assert len(named) > 15
    assert {*named} <= {*FAMILIES, *ALIASES}


@pytest.mark.parametrize("page", PAGES)
def test_each_setting_exists(page: str) -> None:
    settings = re.findall(r"`(runtime|batching|postprocess)\.(\w+)", PAGES[page])
    assert len(settings) > 2 or page == "intel.md"
    for part, key in settings:
        assert key in PARTS[part].model_fields, f"{part}.{key}"


def test_the_keys_in_the_tables_of_intel_are_of_runtime_or_the_top() -> None:
    tables = PAGES["intel.md"].partition("## Settings")[2].partition("## Dynamic inputs")[0]
    named = re.findall(r"^\| `(\w+)", tables, re.MULTILINE)
    assert len(named) == 10
    assert {*named} <= {*Runtime.model_fields, *Bundle.model_fields}


@pytest.mark.parametrize("page", PAGES)
def test_each_flag_exists(page: str) -> None:
    command = typer.main.get_command(app)
    flags = {flag for sub in getattr(command, "commands").values() for each in sub.params for flag in each.opts}  # noqa: B009
    of_docker = {"--group-add", "--app"}
    assert {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGES[page])} <= flags | of_docker | {"--grid"}


@pytest.mark.parametrize(
    "fragment",
    [text for page in PAGES.values() for text in re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)],
)
def test_each_fragment_is_a_model_yaml(fragment: str) -> None:
    bundle = Bundle.checked("docs", yaml.safe_load(fragment))
    recipe_from(bundle.preprocess or ())


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        text = (DOCS / (name or page)).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, target


def test_a_yolov5_classifier_is_one_where_model_yaml_says_so(tmp_path: Path) -> None:
    """Its metadata name classes, as a detector's do, and no task."""
    metadata = {"names": "{0: 'cat', 1: 'dog', 2: 'owl'}", "stride": "32"}
    tiny_models.classifier(tmp_path / "m.onnx", classes=3, metadata=metadata)
    (tmp_path / "model.yaml").write_text("{family: classification, preprocess: [resize: 32]}")
    (files,) = find_models(tmp_path)
    model = load_model(files, Defaults())
    assert (model.family_name, model.task, model.labels) == ("classification", "classification", ("cat", "dog", "owl"))
