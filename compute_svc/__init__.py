"""Turns token ids into logits on one device; knows no text and no HTTP."""
