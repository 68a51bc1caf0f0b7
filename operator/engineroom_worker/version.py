"""Version of the runtime, written to the worker's hash as ``er_version``."""

VERSION = "0.1.0"
