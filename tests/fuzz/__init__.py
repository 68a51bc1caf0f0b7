"""Mutated documents and files, each checked by a second parser."""
