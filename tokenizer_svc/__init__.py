"""Turns text and chats into token ids, and ids into text; knows no model, no logits and no HTTP."""
