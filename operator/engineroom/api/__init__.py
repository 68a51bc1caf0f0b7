"""The kinds of engineroom.dev as pydantic models."""
