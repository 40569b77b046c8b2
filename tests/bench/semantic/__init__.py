"""What the prompt cache and the semantic cache cost, and what they serve rightly."""
