"""Benchmarks: `python -m tests.performance NAME`, or `make bench NAME=...`."""
