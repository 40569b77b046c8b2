"""Makes quantised checkpoints of float ones; serves nothing and knows no tokenizer."""
