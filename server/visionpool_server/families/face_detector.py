"""What face detectors share: from candidates, with their landmarks, to a result. A leaf: it imports no family."""

from __future__ import annotations

from visionpool.results import FaceDetectionResult

from visionpool_server.families import Options, Tensors
from visionpool_server.families.boxes import CandidateDetector, Candidates, detection_result
from visionpool_server.families.points import rounded_points
from visionpool_server.imaging.recipe import Geometry


class FaceDetector(CandidateDetector):
    """`Candidates.more`: x, y of each landmark in the prepared picture; None where the model gives none."""

    accepts = frozenset({"score_threshold", "iou_threshold", "max_detections"})

    def result(
        self,
        found: Candidates,
        outputs: Tensors,  # noqa: ARG002
        geometry: Geometry,
        options: Options,  # noqa: ARG002  a seam's signature
    ) -> FaceDetectionResult:
        faces = detection_result(geometry.to_original(found.boxes), found.scores, found.label_ids, self.labels)
        if found.more is None:
            return FaceDetectionResult(faces.boxes, faces.scores)
        landmarks = geometry.points_to_original(found.more.reshape(-1, 2))
        return FaceDetectionResult(faces.boxes, faces.scores, rounded_points(landmarks), found.more.shape[1] // 2)
