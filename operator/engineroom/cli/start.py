"""The entry point: answers --version before it imports anything else."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    if sys.argv[1:] == ["--version"]:
        from engineroom import __version__

        sys.stdout.write(f"engineroom {__version__}\n")
        return
    from engineroom.cli.app.main import main as run

    run()


if __name__ == "__main__":
    main()
