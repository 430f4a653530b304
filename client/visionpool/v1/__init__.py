"""The typed service over gRPC, generated from protos/visionpool/v1/vision.proto by scripts/protos."""
