"""Compares every model family with an implementation of its own, on the same small random checkpoints; knows no service."""
