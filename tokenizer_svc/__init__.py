"""Turns text and chats into token ids, and ids into text; knows no model, no logits and no HTTP."""

# Before gRPC is imported anywhere: it says how much gRPC writes.
import triserve  # noqa: F401
