"""Connections of the command line: Kubernetes, the API process, Redis, local files."""
