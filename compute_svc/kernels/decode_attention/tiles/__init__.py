"""What a program does with tiles of tokens: reads keys and values of a request where its pages are, and attends to them."""
