"""The command-line application: its groups, options, context and errors."""
