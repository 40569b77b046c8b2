"""Speaks OpenAI's HTTP API: bodies in, JSON and server-sent events out; knows no stage behind the gateway."""
