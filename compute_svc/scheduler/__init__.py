"""Decides which tokens of which requests the next step computes; knows no tensor, no clock and no network."""
