"""This engine beside llama.cpp and transformers: the same weights, the same machine, in turns."""
