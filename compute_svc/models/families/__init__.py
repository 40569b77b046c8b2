"""One file per model family: what its config.json says of the common decoder, and what its tensors are called.

README.md here says how to add one.
"""
