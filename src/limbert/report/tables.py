"""The page's tables and first numbers as text."""

from collections.abc import Mapping
from typing import Any

from limbert.evaluation.results import ProfileRow
from limbert.report.costs import cheapest_close_to_full
from limbert.report.measured import group_by_setting
from limbert.report.numbers import format_metric, format_percent, format_si, format_significant
from limbert.report.read import RunData

TableCell = tuple[str, float | None, str]  # column, exact value, text


def summary_tiles(data: RunData) -> list[dict[str, str]]:
    """The few numbers to know first."""
    full = data.full_result
    found = [
        {"what": f"full model, {data.metric}", "value": format_metric(data.metric_value(full)),
         "more": f"{format_si(full['params'])} parameters, {format_si(full['flops'])}FLOPs an input"},
    ]  # fmt: skip
    best = cheapest_close_to_full(data, {row["subnet"]: row["flops"] for row in data.results})
    if best is not None and best is not full:
        more = f"{data.metric} {format_metric(data.metric_value(best))} at {format_percent(best['flops'] / full['flops'])} of the FLOPs"
        found.append({"what": "cheapest that keeps 99 % of it", "value": best["subnet"], "more": more})
    for setting, rows in list(group_by_setting(data.profile).items())[:1]:
        times = {name: row.latency_p50_ms for name, row in rows.items()}
        if full["subnet"] in times:
            quick = min(times, key=lambda name: times[name])
            value = f"{format_significant(times[full['subnet']])} to {format_significant(times[quick])} ms"
            found.append({"what": "full model to fastest", "value": value, "more": f"{quick}; {setting}"})
    dev = data.find_policy_result("balanced", "development") if "balanced" in data.operating_points else None
    if dev is not None:
        share = format_percent(dev["flops_mean"] / dev["flops_full"])
        found.append(
            {
                "what": "operating point balanced",
                "value": format_metric(data.metric_value(dev)),
                "more": f"with {share} of the FLOPs",
            }
        )
    return found


def subnet_rows(data: RunData) -> list[dict[str, Any]]:
    """The table of all sub-networks: exact values from the files, text for people; the time of the first setting."""
    measured = group_by_setting(data.profile)
    rows = next(iter(measured.values())) if measured else {}
    found = []
    for row in data.results:
        cells: list[TableCell] = [(name, value, format_metric(value)) for name, value in row["metrics"].items()]
        cells += [
            ("parameters", row["params"], format_si(row["params"])),
            ("FLOPs", row["flops"], format_si(row["flops"])),
        ]
        cells += _profile_cells(rows.get(row["subnet"])) if rows else []
        found.append({"name": row["subnet"], "cells": cells})
    return found


def _profile_cells(row: ProfileRow | None) -> list[TableCell]:
    """The cells of one sub-network's profile; empty ones where it was not measured."""
    if row is None:
        return [(name, None, "") for name in ("file", "peak memory", "median", "95 %", "inputs/s")]
    memory = row.peak_memory_bytes
    return [
        ("file", row.file_bytes, format_si(row.file_bytes, "B")),
        ("peak memory", memory, "" if memory is None else format_si(memory, "B")),
        ("median", row.latency_p50_ms, f"{format_significant(row.latency_p50_ms)} ms"),
        ("95 %", row.latency_p95_ms, f"{format_significant(row.latency_p95_ms)} ms"),
        ("inputs/s", row.throughput, format_significant(row.throughput)),
    ]


def measurement_environments(data: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the numbers were measured on: titles with pairs of name and value."""
    first = data.results[0]
    trained = {name: first[name] for name in ("device", "threads", "seed") if name in first} | first.get("versions", {})
    found = [("Metric and FLOPs", _labelled_values(trained))]
    machines: dict[str, Mapping[str, Any]] = {}
    for row in data.profile:
        ram = {"memory": format_si(row.hardware["ram"], "B")} if "ram" in row.hardware else {}
        rest = {name: value for name, value in row.hardware.items() if name != "ram" and value is not None}
        about = rest | ram | row.versions
        machines.setdefault(repr(sorted(about.items())), about)
    found += [("Time and size", _labelled_values(about)) for about in machines.values()]
    return found


def _labelled_values(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), str(value)) for name, value in values.items()]
