"""Keeps one long-lived stream to each tokenizer and compute process; knows the contract and nothing of HTTP."""
