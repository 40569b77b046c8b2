"""Turns drawn tokens into text and finds its end; draws rows itself where it is asked to, as the reference; knows no weights, no KV cache and no HTTP."""

# Before gRPC is imported anywhere: it says how much gRPC writes.
import triserve  # noqa: F401
