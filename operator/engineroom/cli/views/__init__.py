"""Pure rendering: facts in, rich renderables and plain documents out."""
