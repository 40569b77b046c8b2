"""Takes the text of an answer apart into reasoning, content and tool calls, in whatever pieces it comes; knows no token, no model and no HTTP."""
