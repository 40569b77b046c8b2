"""One switch at a time, on and off in turns, beside the claim that it tests."""
