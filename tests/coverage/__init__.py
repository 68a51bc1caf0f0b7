"""The coverage of the three packages by room, and its limits: ``make coverage``."""
