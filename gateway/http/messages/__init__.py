"""Speaks Anthropic's Messages API: bodies in, messages and their events out; knows no stage behind the gateway."""
