"""Right-sizing: what workers use, which requests that suggests, resizing in place."""
