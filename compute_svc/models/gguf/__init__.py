"""Reads GGUF files as checkpoints of the families there are: their config, their tensors under the families' names, their blocks as numbers; knows no engine."""
