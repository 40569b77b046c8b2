"""Of queries: dashboards, alerts and autoscalers ask for metrics that the services tell, of the service that tells them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.deploy.manifests import Manifests
from tests.metric_names import EVERY_SERVICE, NAMES

# Prometheus' own.
_OF_PROMETHEUS = {"up"}
# Told where there is a cache, and where there is a semantic one.
OF_OPTIONS = {"gateway": frozenset({"triserve_prompt_cache_breaker_open", "triserve_semantic_scopes_off"})}
_KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)\s*(?:\{(?P<matchers>[^}]*)\})?(?P<call>\s*\()?")
_JOB = re.compile(r'\bjob="(\w+)"')
_PARTS_OF_HISTOGRAMS = ("_bucket", "_sum", "_count")


class Query(NamedTuple):
    """A query and where it stands."""

    where: str
    text: str


class Metric(NamedTuple):
    """A metric in a query."""

    name: str
    # The service whose metric it is to be; "" = of any.
    job: str


def queries(manifests: Manifests) -> Iterator[Query]:
    """All of an overlay's."""
    for item in manifests.of("ScaledObject"):
        for trigger in item["spec"]["triggers"]:
            yield Query(f"ScaledObject {item['metadata']['name']}", trigger["metadata"]["query"])
    for item in manifests.of("PrometheusRule"):
        for rule in (rule for group in item["spec"]["groups"] for rule in group["rules"]):
            yield Query(f"alert {rule.get('alert', rule.get('record'))}", rule["expr"])
    for item in manifests.of("ConfigMap"):
        if "grafana_dashboard" in item["metadata"].get("labels", {}):
            for text in item["data"].values():
                for panel in json.loads(text)["panels"]:
                    yield from (Query(f"panel {panel['title']}", target["expr"]) for target in panel.get("targets", ()))


def metrics_of(text: str) -> list[Metric]:
    """Metrics that a query of PromQL names, with their jobs."""
    plain = _RANGE.sub("", _GROUPING.sub("", text))
    # A brace in a string would end a selector too early.
    plain = _STRING.sub(lambda match: match[0].replace("{", "").replace("}", ""), plain)
    found = []
    for match in _SELECTOR.finditer(plain):
        if match["call"] or match["name"].lower() in _KEYWORDS:
            continue
        job = _JOB.search(match["matchers"] or "")
        found.append(Metric(match["name"], job[1] if job else ""))
    return found


def told(manifests: Manifests) -> list[str]:
    """Every metric in a query is told by the service that the query names, or by all."""
    return [f"{query.where}: {problem}" for query in queries(manifests) for problem in query_problems(query.text)]


def query_problems(text: str) -> list[str]:
    """What is wrong with one query."""
    problems = []
    found = metrics_of(text)
    if not found:
        problems.append(f"{text!r} asks for no metric")
    for metric in found:
        if metric.name in _OF_PROMETHEUS or _is_in(metric.name, EVERY_SERVICE):
            continue
        if not metric.job:
            problems.append(f"{metric.name} without a job would add up what several services say of the same")
        elif not _is_in(metric.name, NAMES.get(metric.job, frozenset()) | OF_OPTIONS.get(metric.job, frozenset())):
            problems.append(f"{metric.job} does not tell {metric.name}")
    return problems


def _is_in(name: str, known: frozenset[str]) -> bool:
    if name in known:
        return True
    return any(name.endswith(part) and name.removesuffix(part) in known for part in _PARTS_OF_HISTOGRAMS)
