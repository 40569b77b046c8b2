"""Real client packages against a real pipeline, each in an environment that is not ours: `make compat`; knows the HTTP API alone."""
