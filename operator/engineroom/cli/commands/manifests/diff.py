"""``engineroom diff``: see ``engineroom apply``."""

from engineroom.cli.commands.manifests.apply import diff

__all__ = ["diff"]
