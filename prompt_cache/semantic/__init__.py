"""Decides whether the answer to a question that is near may be served for another; knows vectors by their cosine, and Redis by a store's calls."""
