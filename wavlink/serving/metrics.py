"""Figures of a running server, in Prometheus's format."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_OTHER = "other"  # in place of a path that is no route, of which clients could invent any number


class Metrics:
    """Counters, histograms and gauges of one server.

    Args:
        routes: the paths that are counted by name.
    """

    def __init__(self, routes: list[str]):
        self._routes, self.registry = frozenset(routes), CollectorRegistry()
        labels, options = ["route", "status"], {"registry": self.registry}
        self._requests = Counter("wavlink_requests", "Requests that were answered", labels, **options)
        self._seconds = Histogram("wavlink_request_seconds", "From request to answer", ["route"], **options)
        self._batch = Histogram("wavlink_batch_size", "Inputs of a batch", ["kind"], buckets=_SIZES, **options)
        self._compute = Counter("wavlink_compute_seconds", "Seconds of the model", ["kind"], **options)
        self._texts = Counter("wavlink_texts", "Texts that were embedded", **options)
        self._tokens = Counter("wavlink_tokens", "Tokens of embedding requests", **options)
        self._audio = Counter("wavlink_audio_seconds", "Seconds of sound that were processed", **options)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value that is read whenever the figures are."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        route = route if route in self._routes else _OTHER
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, kind: str, size: int, seconds: float) -> None:
        """Count a batch of texts or clips."""
        self._batch.labels(kind).observe(size)
        self._compute.labels(kind).inc(seconds)

    def count_inputs(self, texts: int, tokens: int, seconds: float) -> None:
        """Count the inputs of a request."""
        self._texts.inc(texts)
        self._tokens.inc(tokens)
        self._audio.inc(seconds)

    def text(self) -> bytes:
        """Return all figures in Prometheus's text format."""
        return generate_latest(self.registry)
