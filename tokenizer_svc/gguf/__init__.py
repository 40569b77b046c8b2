"""Makes a tokenizer.json, and the other small files about text, of a GGUF file's metadata; knows no weights."""
