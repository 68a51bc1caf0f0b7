"""The command line: facts, findings, rendering and commands, without a cluster."""
