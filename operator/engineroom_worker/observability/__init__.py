"""Logs, metrics and traces of the runtime, and the redaction of secrets in them."""
