"""Audits by external tools: code, dependencies, history, chart."""
