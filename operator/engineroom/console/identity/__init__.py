"""REST handlers for signing in, sessions, tokens, API keys and users."""
