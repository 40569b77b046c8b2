"""Speaks OpenAI's HTTP API and gRPC with clients and follows each request through the stages; knows no vocabulary, no weights and no KV."""

# Before gRPC is imported anywhere: it says how much gRPC writes.
import triserve  # noqa: F401
