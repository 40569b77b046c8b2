"""Turns drawn tokens and candidates into verdicts and text; knows no weights, no KV cache and no HTTP."""
