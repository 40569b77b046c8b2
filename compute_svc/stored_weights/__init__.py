"""Weights as checkpoints store them: dense, or codes with scales; knows no file, no model and no kernel."""
