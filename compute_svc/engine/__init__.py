"""The process that computes: loads a model, runs its steps and chooses what is drawn; knows no network, no sampler and no gateway."""
