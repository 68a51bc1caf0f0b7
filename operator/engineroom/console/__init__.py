"""The API process: REST under ``/api/v1``, live events. Needs the extra ``engineroom[console]``."""
