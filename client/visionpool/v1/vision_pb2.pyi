from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PictureFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_FORMAT_UNSPECIFIED: _ClassVar[PictureFormat]
    PICTURE_FORMAT_JPEG: _ClassVar[PictureFormat]
    PICTURE_FORMAT_PNG: _ClassVar[PictureFormat]
PICTURE_FORMAT_UNSPECIFIED: PictureFormat
PICTURE_FORMAT_JPEG: PictureFormat
PICTURE_FORMAT_PNG: PictureFormat

class PredictOptions(_message.Message):
    __slots__ = ("score_threshold", "iou_threshold", "top_k", "max_detections", "classes", "timeout_ms", "compact", "score_map")
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    IOU_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    COMPACT_FIELD_NUMBER: _ClassVar[int]
    SCORE_MAP_FIELD_NUMBER: _ClassVar[int]
    score_threshold: float
    iou_threshold: float
    top_k: int
    max_detections: int
    classes: _containers.RepeatedScalarFieldContainer[str]
    timeout_ms: float
    compact: bool
    score_map: bool
    def __init__(self, score_threshold: _Optional[float] = ..., iou_threshold: _Optional[float] = ..., top_k: _Optional[int] = ..., max_detections: _Optional[int] = ..., classes: _Optional[_Iterable[str]] = ..., timeout_ms: _Optional[float] = ..., compact: bool = ..., score_map: bool = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("model", "version", "pictures", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    pictures: _containers.RepeatedScalarFieldContainer[bytes]
    options: PredictOptions
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., pictures: _Optional[_Iterable[bytes]] = ..., options: _Optional[_Union[PredictOptions, _Mapping]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("model", "version", "results", "timings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    results: _containers.RepeatedCompositeFieldContainer[Result]
    timings: Timings
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class PredictStreamRequest(_message.Message):
    __slots__ = ("model", "version", "options", "picture", "id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    options: PredictOptions
    picture: bytes
    id: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., options: _Optional[_Union[PredictOptions, _Mapping]] = ..., picture: _Optional[bytes] = ..., id: _Optional[str] = ...) -> None: ...

class PredictStreamResponse(_message.Message):
    __slots__ = ("id", "model", "version", "result", "error", "timings")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    version: str
    result: Result
    error: Error
    timings: Timings
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class AnnotateRequest(_message.Message):
    __slots__ = ("model", "version", "picture", "options", "format")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    picture: bytes
    options: PredictOptions
    format: PictureFormat
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., picture: _Optional[bytes] = ..., options: _Optional[_Union[PredictOptions, _Mapping]] = ..., format: _Optional[_Union[PictureFormat, str]] = ...) -> None: ...

class AnnotateResponse(_message.Message):
    __slots__ = ("model", "version", "picture", "format", "result", "timings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    picture: bytes
    format: PictureFormat
    result: Result
    timings: Timings
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., picture: _Optional[bytes] = ..., format: _Optional[_Union[PictureFormat, str]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("summary", "labels", "options", "inputs", "outputs", "details")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    summary: ModelSummary
    labels: _containers.RepeatedScalarFieldContainer[str]
    options: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    details: _struct_pb2.Struct
    def __init__(self, summary: _Optional[_Union[ModelSummary, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ..., options: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("name", "version", "task", "family", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    task: str
    family: str
    state: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., task: _Optional[str] = ..., family: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode_ms", "prepare_ms", "queue_ms", "infer_ms", "finish_ms")
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    PREPARE_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    INFER_MS_FIELD_NUMBER: _ClassVar[int]
    FINISH_MS_FIELD_NUMBER: _ClassVar[int]
    decode_ms: float
    prepare_ms: float
    queue_ms: float
    infer_ms: float
    finish_ms: float
    def __init__(self, decode_ms: _Optional[float] = ..., prepare_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., infer_ms: _Optional[float] = ..., finish_ms: _Optional[float] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "hint", "retry_after")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    hint: str
    retry_after: float
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., retry_after: _Optional[float] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("detection", "classification", "segmentation", "ocr", "keypoints", "faces", "embedding")
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    OCR_FIELD_NUMBER: _ClassVar[int]
    KEYPOINTS_FIELD_NUMBER: _ClassVar[int]
    FACES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    detection: DetectionResult
    classification: ClassifyResult
    segmentation: SegmentationResult
    ocr: OCRResult
    keypoints: KeyPointDetectionResult
    faces: FaceDetectionResult
    embedding: EmbeddingResult
    def __init__(self, detection: _Optional[_Union[DetectionResult, _Mapping]] = ..., classification: _Optional[_Union[ClassifyResult, _Mapping]] = ..., segmentation: _Optional[_Union[SegmentationResult, _Mapping]] = ..., ocr: _Optional[_Union[OCRResult, _Mapping]] = ..., keypoints: _Optional[_Union[KeyPointDetectionResult, _Mapping]] = ..., faces: _Optional[_Union[FaceDetectionResult, _Mapping]] = ..., embedding: _Optional[_Union[EmbeddingResult, _Mapping]] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("xmin", "ymin", "xmax", "ymax")
    XMIN_FIELD_NUMBER: _ClassVar[int]
    YMIN_FIELD_NUMBER: _ClassVar[int]
    XMAX_FIELD_NUMBER: _ClassVar[int]
    YMAX_FIELD_NUMBER: _ClassVar[int]
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    def __init__(self, xmin: _Optional[float] = ..., ymin: _Optional[float] = ..., xmax: _Optional[float] = ..., ymax: _Optional[float] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class RotatedBox(_message.Message):
    __slots__ = ("coordinates",)
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    coordinates: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, coordinates: _Optional[_Iterable[float]] = ...) -> None: ...

class TextBox(_message.Message):
    __slots__ = ("coordinates",)
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    coordinates: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, coordinates: _Optional[_Iterable[int]] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("data", "height", "width", "rle")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RLE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    height: int
    width: int
    rle: str
    def __init__(self, data: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., rle: _Optional[str] = ...) -> None: ...

class DetectionResult(_message.Message):
    __slots__ = ("boxes", "scores", "label_ids", "labels", "rotated_boxes", "masks", "contain_masks")
    BOXES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    LABEL_IDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ROTATED_BOXES_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    CONTAIN_MASKS_FIELD_NUMBER: _ClassVar[int]
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    scores: _containers.RepeatedScalarFieldContainer[float]
    label_ids: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    rotated_boxes: _containers.RepeatedCompositeFieldContainer[RotatedBox]
    masks: _containers.RepeatedCompositeFieldContainer[Mask]
    contain_masks: bool
    def __init__(self, boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., scores: _Optional[_Iterable[float]] = ..., label_ids: _Optional[_Iterable[int]] = ..., labels: _Optional[_Iterable[str]] = ..., rotated_boxes: _Optional[_Iterable[_Union[RotatedBox, _Mapping]]] = ..., masks: _Optional[_Iterable[_Union[Mask, _Mapping]]] = ..., contain_masks: bool = ...) -> None: ...

class ClassifyResult(_message.Message):
    __slots__ = ("label_ids", "scores", "labels")
    LABEL_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    label_ids: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, label_ids: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class EmbeddingResult(_message.Message):
    __slots__ = ("embedding",)
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    embedding: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, embedding: _Optional[_Iterable[float]] = ...) -> None: ...

class SegmentationResult(_message.Message):
    __slots__ = ("label_map", "score_map", "height", "width", "contain_score_map", "labels", "label_map_png", "score_map_png")
    LABEL_MAP_FIELD_NUMBER: _ClassVar[int]
    SCORE_MAP_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CONTAIN_SCORE_MAP_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_PNG_FIELD_NUMBER: _ClassVar[int]
    SCORE_MAP_PNG_FIELD_NUMBER: _ClassVar[int]
    label_map: _containers.RepeatedScalarFieldContainer[int]
    score_map: _containers.RepeatedScalarFieldContainer[float]
    height: int
    width: int
    contain_score_map: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    label_map_png: bytes
    score_map_png: bytes
    def __init__(self, label_map: _Optional[_Iterable[int]] = ..., score_map: _Optional[_Iterable[float]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., contain_score_map: bool = ..., labels: _Optional[_Iterable[str]] = ..., label_map_png: _Optional[bytes] = ..., score_map_png: _Optional[bytes] = ...) -> None: ...

class OCRResult(_message.Message):
    __slots__ = ("boxes", "text", "rec_scores", "cls_scores", "cls_labels")
    BOXES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REC_SCORES_FIELD_NUMBER: _ClassVar[int]
    CLS_SCORES_FIELD_NUMBER: _ClassVar[int]
    CLS_LABELS_FIELD_NUMBER: _ClassVar[int]
    boxes: _containers.RepeatedCompositeFieldContainer[TextBox]
    text: _containers.RepeatedScalarFieldContainer[str]
    rec_scores: _containers.RepeatedScalarFieldContainer[float]
    cls_scores: _containers.RepeatedScalarFieldContainer[float]
    cls_labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, boxes: _Optional[_Iterable[_Union[TextBox, _Mapping]]] = ..., text: _Optional[_Iterable[str]] = ..., rec_scores: _Optional[_Iterable[float]] = ..., cls_scores: _Optional[_Iterable[float]] = ..., cls_labels: _Optional[_Iterable[int]] = ...) -> None: ...

class KeyPointDetectionResult(_message.Message):
    __slots__ = ("keypoints", "scores", "num_joints", "boxes", "box_scores")
    KEYPOINTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    NUM_JOINTS_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    BOX_SCORES_FIELD_NUMBER: _ClassVar[int]
    keypoints: _containers.RepeatedCompositeFieldContainer[Point]
    scores: _containers.RepeatedScalarFieldContainer[float]
    num_joints: int
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    box_scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, keypoints: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., scores: _Optional[_Iterable[float]] = ..., num_joints: _Optional[int] = ..., boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., box_scores: _Optional[_Iterable[float]] = ...) -> None: ...

class FaceDetectionResult(_message.Message):
    __slots__ = ("boxes", "scores", "landmarks", "landmarks_per_face")
    BOXES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    LANDMARKS_FIELD_NUMBER: _ClassVar[int]
    LANDMARKS_PER_FACE_FIELD_NUMBER: _ClassVar[int]
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    scores: _containers.RepeatedScalarFieldContainer[float]
    landmarks: _containers.RepeatedCompositeFieldContainer[Point]
    landmarks_per_face: int
    def __init__(self, boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., scores: _Optional[_Iterable[float]] = ..., landmarks: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., landmarks_per_face: _Optional[int] = ...) -> None: ...
