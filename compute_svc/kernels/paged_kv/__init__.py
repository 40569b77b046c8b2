"""How keys and values lie in their pages: one layer's store, and its numbers as codes in groups; knows no pool and no request."""
