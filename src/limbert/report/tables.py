"""The page's tables and first numbers as text."""

from collections.abc import Mapping
from typing import Any

from limbert.evaluation.profile_rows import ProfileRow
from limbert.report.costs import smallest_keeping
from limbert.report.measured import by_setting
from limbert.report.numbers import amount, digits, metric_text, share_text
from limbert.report.read import RunData

Cell = tuple[str, float | None, str]  # column, exact value, text


def tiles(data: RunData) -> list[dict[str, str]]:
    """The few numbers to know first."""
    full = data.full
    found = [
        {"what": f"full model, {data.metric}", "value": metric_text(data.value(full)),
         "more": f"{amount(full['params'])} parameters, {amount(full['flops'])}FLOPs an input"},
    ]  # fmt: skip
    best = smallest_keeping(data, {row["subnet"]: row["flops"] for row in data.results})
    if best is not None and best is not full:
        more = (
            f"{data.metric} {metric_text(data.value(best))} at {share_text(best['flops'] / full['flops'])} of the FLOPs"
        )
        found.append({"what": "cheapest that keeps 99 % of it", "value": best["subnet"], "more": more})
    for setting, rows in list(by_setting(data.profile).items())[:1]:
        times = {name: row.latency_p50_ms for name, row in rows.items()}
        if full["subnet"] in times:
            quick = min(times, key=lambda name: times[name])
            value = f"{digits(times[full['subnet']])} to {digits(times[quick])} ms"
            found.append({"what": "full model to fastest", "value": value, "more": f"{quick}; {setting}"})
    dev = data.spent_by("balanced", "development") if "balanced" in data.points else None
    if dev is not None:
        share = share_text(dev["flops_mean"] / dev["flops_full"])
        found.append(
            {
                "what": "operating point balanced",
                "value": metric_text(data.value(dev)),
                "more": f"with {share} of the FLOPs",
            }
        )
    return found


def size_rows(data: RunData) -> list[dict[str, Any]]:
    """The table of all sub-networks: exact values from the files, text for people; the time of the first setting."""
    measured = by_setting(data.profile)
    rows = next(iter(measured.values())) if measured else {}
    found = []
    for row in data.results:
        cells: list[Cell] = [(name, value, metric_text(value)) for name, value in row["metrics"].items()]
        cells += [("parameters", row["params"], amount(row["params"])), ("FLOPs", row["flops"], amount(row["flops"]))]
        cells += _measured(rows.get(row["subnet"])) if rows else []
        found.append({"name": row["subnet"], "cells": cells})
    return found


def _measured(row: ProfileRow | None) -> list[Cell]:
    """The cells of one sub-network's profile; empty ones where it was not measured."""
    if row is None:
        return [(name, None, "") for name in ("file", "peak memory", "median", "95 %", "inputs/s")]
    memory = row.peak_memory_bytes
    return [
        ("file", row.file_bytes, amount(row.file_bytes, "B")),
        ("peak memory", memory, "" if memory is None else amount(memory, "B")),
        ("median", row.latency_p50_ms, f"{digits(row.latency_p50_ms)} ms"),
        ("95 %", row.latency_p95_ms, f"{digits(row.latency_p95_ms)} ms"),
        ("inputs/s", row.throughput, digits(row.throughput)),
    ]


def machines(data: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the numbers were measured on: titles with pairs of name and value."""
    first = data.results[0]
    trained = {name: first[name] for name in ("device", "threads", "seed") if name in first} | first.get("versions", {})
    found = [("Metric and FLOPs", _pairs(trained))]
    machines: dict[str, Mapping[str, Any]] = {}
    for row in data.profile:
        ram = {"memory": amount(row.hardware["ram"], "B")} if "ram" in row.hardware else {}
        rest = {name: value for name, value in row.hardware.items() if name != "ram" and value is not None}
        about = rest | ram | row.versions
        machines.setdefault(repr(sorted(about.items())), about)
    found += [("Time and size", _pairs(about)) for about in machines.values()]
    return found


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), str(value)) for name, value in values.items()]
