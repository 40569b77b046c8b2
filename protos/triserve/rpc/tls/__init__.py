"""TLS between stages: both ends show certificates, from files that may be replaced; knows no service."""
