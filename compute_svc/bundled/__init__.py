"""The small model that makes the first minute work without a download: its questions, its training and its weights; knows no engine and no service."""
