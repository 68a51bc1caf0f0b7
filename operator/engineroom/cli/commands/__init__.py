"""One module a command: read, render, exit code.

These modules do without ``from __future__ import annotations``: typer reads the annotations at run
time, and so they have to be real.
"""
