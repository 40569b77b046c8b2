"""Keeps sealed entries beside vectors in Redis and finds those that are near; knows no text and no secret."""
