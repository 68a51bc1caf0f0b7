"""Commands on manifests: lint, diff, apply, transactions."""
