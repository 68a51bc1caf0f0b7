"""The cost of parsers, redactors and renderers on inputs that are made to be expensive."""
