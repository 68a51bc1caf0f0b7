"""Metrics of the admission server."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from engineroom.core.prometheus import PrometheusRecovery

REQUESTS = Counter(
    "engineroom_admission_requests",
    "Admission reviews answered, by operation and outcome (allowed, refused, unread, failed).",
    ["operation", "outcome"],
)
DURATION = Histogram(
    "engineroom_admission_duration_seconds",
    "From the end of the request to the answer.",
    buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 3),
)
AUTHOR_REVIEWS = Counter(
    "engineroom_admission_author_reviews",
    "Questions whether an author may create pods, by source of the answer.",
    ["source"],
)
CERTIFICATE_END = Gauge(
    "engineroom_admission_certificate_end_timestamp_seconds",
    "When the certificate in use ends (Unix time).",
)
ROTATIONS = Counter(
    "engineroom_admission_certificate_steps", "Steps of certificate rotation taken.", ["step"]
)
#: Errors that reviews met, by code; the same series as in the other processes.
ERRORS = PrometheusRecovery()
