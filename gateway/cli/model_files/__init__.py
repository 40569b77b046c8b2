"""Turns what --model names into a folder of files: downloaded, converted or found; knows no server."""
