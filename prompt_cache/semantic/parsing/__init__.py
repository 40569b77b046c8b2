"""Takes a question apart: its language, what it is wrapped in, numbers, phrases, and words in the form and order in which guards compare them."""
