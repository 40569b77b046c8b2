"""Draws tokens on CPUs, by the specification of `SamplingParams`: the reference for compute's own draw; knows no text."""
