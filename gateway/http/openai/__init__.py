"""Speaks OpenAI's chat and completions: fields, bodies and answers; knows no stage behind the gateway."""
