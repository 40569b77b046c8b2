"""Checks grammars in processes that may be killed, and says what of a JSON schema cannot be held; knows no request, no mask and no vocabulary."""
