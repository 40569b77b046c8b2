"""Where programs of attention share the tokens of a query: what each has of it, and how that is added up."""
