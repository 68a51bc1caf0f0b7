"""Commands on sign-in, API keys, sessions and the audit log."""
