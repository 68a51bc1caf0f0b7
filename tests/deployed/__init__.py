"""Engineroom installed on a real cluster, as the demonstration, the e2e tests and the benchmarks use it."""
