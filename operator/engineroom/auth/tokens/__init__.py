"""Credentials of programs: access tokens, API keys, signing keys, revocation."""
