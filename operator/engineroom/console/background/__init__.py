"""Background work of the API process."""
