"""A request's answers as a door reads them, however they come: from replicas, from the prompt cache, from another's request, or behind a rewritten turn."""
