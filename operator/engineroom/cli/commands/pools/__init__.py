"""Commands on worker pools."""
