"""The shared core: errors, recovery, logging, clock, conditions, transactions, validation."""
