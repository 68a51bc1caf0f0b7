"""``engineroom diff``: see ``engineroom apply``."""

from engineroom.cli.commands.apply import diff

__all__ = ["diff"]
