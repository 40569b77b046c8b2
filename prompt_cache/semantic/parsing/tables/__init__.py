"""What is known of the words of each language; knows no question."""
