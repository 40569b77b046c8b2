"""One file per model family: what its config.json says of the common decoder, and what its tensors are called.

To add a family: a module with `ARCHITECTURES`, the names its checkpoints give themselves, and `read(fields, architecture)`, which returns a
checked `ModelConfig` and `WeightNames`; its name in `registry.FAMILIES`; a line in the oracle table (tests/oracle).
"""
