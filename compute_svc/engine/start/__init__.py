"""From a model folder to an engine that fits its device; knows no request."""
