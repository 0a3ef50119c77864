"""The tables and histograms of `vtlkit trace`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from vtlkit.cli.measure import duration
from vtlkit.trace.summary import FIGURES, Latency, Summary, most_first

_BAR: Final = 40
"""Columns of the longest bar."""
_COLUMNS: Final = 4
"""vCPUs that fit side by side into the 80 columns of a terminal."""
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def tables(name: str, summary: Summary) -> Iterator[RenderableType]:
    """What there is to show of a trace, from top to bottom."""
    total = summary.events.total()
    yield f"{name}: {total:,} events in {_time(summary.last_ns - summary.first_ns)}"
    if not total:
        return
    yield _latencies(summary)
    for label, latency in summary.latencies().items():
        if latency.samples:
            yield _histogram(label, latency)
    if summary.exit_counts:
        yield _exits(summary)
    if summary.woke:
        yield _woke(summary)
    yield _events(summary)


def bar(count: int, largest: int) -> str:
    """A bar for `count`, the longest being that of `largest`; an eighth of a column at least."""
    eighths = max(count * _BAR * 8 // largest, 1) if count else 0
    return _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _time(ns: int) -> str:
    return duration(ns / 1e9) if ns else "0 ns"


def _table(title: str, *headings: str) -> Table:
    """The first column is text, the others are figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _latencies(summary: Summary) -> Table:
    table = _table("Latencies", "", "count", *FIGURES)
    for label, latency in summary.latencies().items():
        if latency.samples:
            table.add_row(label, f"{len(latency.samples):,}", *map(_time, latency.figures().values()))
        else:
            table.add_row(label, "0")
    return table


def _histogram(label: str, latency: Latency) -> Table:
    table = _table(label, "from", "below", "count")
    table.add_column("")
    buckets = latency.buckets()
    largest = max(count for _, _, count in buckets)
    for low, high, count in buckets:
        table.add_row(_time(low), _time(high), f"{count:,}", bar(count, largest))
    return table


def _exits(summary: Summary) -> Table:
    table = _table("Exits", "reason", "count", "share", "time", "share", "mean")
    count_total, ns_total = summary.exit_counts.total(), summary.exit_ns.total()
    for reason, count in most_first(summary.exit_counts):
        ns = summary.exit_ns[reason]
        share = f"{ns / ns_total:.1%}" if ns_total else ""
        table.add_row(reason, f"{count:,}", f"{count / count_total:.1%}", _time(ns), share, _time(ns // count))
    return table


def _woke(summary: Summary) -> Table:
    """A row for each source of wakes, a column for each vCPU that was woken; for many a row each, most first."""
    sources = sorted({source for source, _ in summary.woke})
    targets = sorted({target for _, target in summary.woke})
    if len(targets) > _COLUMNS:
        table = _table("Who woke whom", "woken by", "woken", "count")
        for (source, target), count in most_first(summary.woke):
            table.add_row(source, target, f"{count:,}")
        return table
    table = _table("Who woke whom", "woken by", *targets)
    for source in sources:
        table.add_row(
            source, *(f"{summary.woke[source, target]:,}" if summary.woke[source, target] else "" for target in targets)
        )
    return table


def _events(summary: Summary) -> Table:
    table = _table("Events", "event", "count")
    for name, count in most_first(summary.events):
        table.add_row(name, f"{count:,}")
    return table
