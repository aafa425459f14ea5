"""What Prometheus may read of a server."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "whisper_hailo_calls",
            "Calls that ended, by method and status.",
            ["method", "code"],
            registry=self.registry,
        )
        self.windows = Counter("whisper_hailo_windows", "Windows encoded.", registry=self.registry)
        self.rejected = Counter(
            "whisper_hailo_rejected_windows", "Windows not encoded, by status.", ["code"], registry=self.registry
        )
        self.failures = Counter(
            "whisper_hailo_device_failures", "Batches on which the device failed.", registry=self.registry
        )
        self.active = Gauge("whisper_hailo_active_calls", "Calls under way.", registry=self.registry)
        self.queue = Gauge("whisper_hailo_queue_windows", "Windows that wait for the device.", registry=self.registry)
        self.batch = Histogram(
            "whisper_hailo_batch_windows", "Windows in a batch.", buckets=(1, 2, 4, 8, 16), registry=self.registry
        )
        self.device_seconds = Histogram(
            "whisper_hailo_device_seconds", "Time of a batch on the device.", buckets=_SECONDS, registry=self.registry
        )
        self.queue_seconds = Histogram(
            "whisper_hailo_queue_seconds", "Time that a window waited.", buckets=_SECONDS, registry=self.registry
        )
        self._http: Any = None

    def observe_batch(self, size: int, seconds: float | None) -> None:
        """Counts a batch; `seconds` None says that the device failed."""
        if seconds is None:
            self.failures.inc()
            return
        self.windows.inc(size)
        self.batch.observe(size)
        self.device_seconds.observe(seconds)

    def serve(self, host: str, port: int) -> int:
        """Lets Prometheus read over HTTP; the port that was taken."""
        self._http = start_http_server(port, host, self.registry)
        return int(self._http[0].server_port)

    def close(self) -> None:
        """Ends the HTTP server."""
        if self._http is not None:
            server, thread = self._http
            server.shutdown()
            server.server_close()
            thread.join()
            self._http = None
