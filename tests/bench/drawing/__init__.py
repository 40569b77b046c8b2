"""What sampling costs, where it is done, and answers of a form."""
