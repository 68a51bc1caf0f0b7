"""Draining: which pods leave when a pool shrinks."""
