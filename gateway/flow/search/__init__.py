"""Looks for answers among more than are returned: the best of several, beams, contrastive search; knows tokens by their bytes, no HTTP and no weights."""
