"""Speaks HTTP: bodies in, JSON and server-sent events out; knows no stage behind the gateway."""
