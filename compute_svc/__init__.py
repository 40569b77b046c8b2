"""Turns token ids into logits on one device; knows no text and no HTTP."""

# Before gRPC is imported anywhere: it says how much gRPC writes.
import triserve  # noqa: F401
