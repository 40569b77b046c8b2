"""Turns questions into unit vectors; knows no Redis and no answers."""
