"""The limits on the language and the shape of the code, held by ``make lint``."""
