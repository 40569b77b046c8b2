"""Generated protobuf and gRPC code of triserve.v1; made by `make protos`, never edited."""
