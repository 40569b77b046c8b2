"""Spans of requests that are traced, on their way to a collector; knows no service."""
