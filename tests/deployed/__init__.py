"""Engineroom installed on a real cluster, as the demonstration, tests and benchmarks use it."""
