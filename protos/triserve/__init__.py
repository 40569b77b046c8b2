"""The contract between the stages: schema, generated code and the rpc helpers that two or more services share; knows no service."""

import os

# gRPC, which reads this when it is imported, writes notes of its own into logs and terminals otherwise: of connections that end, of processes that start.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
