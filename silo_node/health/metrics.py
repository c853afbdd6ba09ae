"""The silo in numbers for the hospital's own monitoring, in Prometheus' text format (`silo metrics`, the page's /metrics).

They come from what `silo status` reads, so they are there too while nothing runs. No patient, no path, no title in any.
Names: prometheus.io's conventions (base units, `_total` for what only grows, `_timestamp_seconds` for a moment).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from silo_node import __version__
from silo_node.config import Config
from silo_node.health import status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(config: Config) -> bytes:
    """All of them, as a scraper or node_exporter's textfile collector reads them. Raises: what `status.report` raises."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Silo(config))
    return generate_latest(registry)


def samples(config: Config) -> list[dict[str, Any]]:
    """The same as plain values: name, labels, value."""
    return [
        {"name": sample.name, "labels": dict(sample.labels), "value": sample.value}
        for family in _families(config)
        for sample in family.samples
    ]


class _Silo(Collector):
    def __init__(self, config: Config) -> None:
        self._config = config

    def collect(self) -> Iterator[Metric]:
        yield from _families(self._config)


def _families(config: Config) -> Iterator[Metric]:
    report = status.report(config)
    yield _gauges("info", "Always 1.", ("silo", "version"), [((config.name, __version__), 1)])
    yield _gauge("running", "1 while `silo run` works.", report["running"])
    if report["last_contact"]:
        yield _gauge("last_contact_timestamp_seconds", "The portal's last answer.", _seconds(report["last_contact"]))
    problems = Counter((each["code"], _kind(each["about"])) for each in report["problems"])
    yield _gauges("problems", "What is wrong now; `silo status` says it in words.", ("code", "about"), problems.items())
    yield _gauge("studies_paused", "Studies that this silo has stopped.", len(report["paused"]))
    ends = [((each["what"],), _seconds(each["until"])) for each in report["reminders"]]
    yield _gauges("ends_timestamp_seconds", "Keys, certificates, policy and approvals that end soon.", ("what",), ends)
    yield _gauge("disk_free_bytes", "Room on the disk of the silo's folder.", shutil.disk_usage(config.folder).free)
    yield _counters("rounds", "Rounds that ended here.", "outcome", report["rounds"]["outcomes"])
    for name, member, what in (
        ("requests", "requests", "Requests to the portal."),
        ("sent_bytes", "bytes_up", "What left this hospital."),
        ("received_bytes", "bytes_down", "What the portal sent."),
    ):
        yield _counters(name, what, "kind", {kind: each[member] for kind, each in report["sent"].items()})
    fetched, receiver = ((report["pacs"] or {}).get(name) for name in ("fetch", "receiver"))
    if fetched:
        yield _gauge("pacs_missing_images", "Found in the PACS, not here yet.", fetched["missing"])
    if receiver:
        yield _counters("receiver_images", "What came of what the PACS sent.", "code", receiver.get("counts", {}))


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"consilium_silo_{name}", what, value=float(value))


def _gauges(name: str, what: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(f"consilium_silo_{name}", what, labels=labels)
    for values, value in rows:
        family.add_metric(values, float(value))
    return family


def _counters(name: str, what: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"consilium_silo_{name}", what, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), float(value))
    return family


def _seconds(at: str) -> float:
    """Since 1970, of a time or of a day's beginning in UTC."""
    moment = datetime.fromisoformat(at)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _kind(about: str) -> str:
    """A study's id is of no use in an alarm's rule."""
    return about if about in (status.PORTAL, status.WAY, status.HERE) else "study"
