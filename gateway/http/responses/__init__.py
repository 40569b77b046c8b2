"""Speaks OpenAI's Responses API: bodies in, responses and typed events out; knows no stage behind the gateway."""
