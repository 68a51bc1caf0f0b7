"""Several objects applied as one transaction: what API and command line have in common."""
