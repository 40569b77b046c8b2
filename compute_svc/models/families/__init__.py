"""One file per model family: what its config.json says of the common decoder, what its tensors are called, and small examples of it.

README.md here says how to add one.
"""
