"""Sign-in of people: passwords, lockout, one-time links, sessions."""
