"""One file per model family: what its config says of the common decoder."""
