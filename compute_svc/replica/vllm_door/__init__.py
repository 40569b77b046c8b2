"""Serves vLLM's engine gRPC, so that routers made for vLLM drive a replica: token ids in, token ids out; knows no engine and no sampler."""
