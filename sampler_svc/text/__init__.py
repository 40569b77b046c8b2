"""What tokens are as text: bytes of a vocabulary, an answer as it grows, stop strings; knows no logits."""
