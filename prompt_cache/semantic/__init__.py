"""Decides whether the answer to a question that is near may be served for another; knows no Redis and no vectors but their cosine."""
