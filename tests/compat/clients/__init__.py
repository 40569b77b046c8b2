"""The checks of each client package, run by the interpreter of its own environment."""
