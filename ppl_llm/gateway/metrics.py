"""Figures for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Of one gateway, in a registry of its own. No label holds anything that a client has written."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("ppl_llm_requests", "Requests by route and status.", ("route", "status"), registry=own)
        self.seconds = Histogram(
            "ppl_llm_request_seconds",
            "Seconds until a request was answered.",
            ("route",),
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250),
            registry=own,
        )
        self.programs = Gauge("ppl_llm_programs", "Programs under way or waiting.", registry=own)
        self.runs = Counter("ppl_llm_runs", "Runs that came to an end, by method.", ("method",), registry=own)
        self.tokens = Counter("ppl_llm_tokens_sampled", "Tokens that the language model has written.", registry=own)
        self.answered = Counter("ppl_llm_tokens_returned", "Tokens of the answers that clients got.", registry=own)
        self.hung_up = Counter("ppl_llm_hang_ups", "Clients that did not wait for their answer.", registry=own)
        self.refused = Counter("ppl_llm_refused", "Requests for which there was no room.", registry=own)

    def text(self) -> bytes:
        return generate_latest(self.registry)
