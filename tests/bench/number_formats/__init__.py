"""What formats of weights and of keys and values cost in quality, and what they save."""
