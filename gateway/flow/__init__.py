"""Follows a request from admission to its end; knows no HTTP, no JSON and no socket."""
