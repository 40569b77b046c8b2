"""Describes the HTTP API as an OpenAPI document, made from the types that read its bodies; knows no request."""
