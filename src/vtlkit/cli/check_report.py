"""What `vtlkit check` prints: for people, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from vtlkit.cli.check_runs import Outcome, portable

if TYPE_CHECKING:
    from vtlkit.checker.protocols import Protocol
    from vtlkit.checker.result import Counterexample, Result

PROMISE: Final = "no lost wake-up, no deadlock, no assertion fails, no data race"


def counts(result: Result) -> str:
    """`12 executions`, or `12 states`: the certificate."""
    parts = []
    if result.states is not None:
        parts.append(_number(result.states, "state"))
    if result.executions is not None:
        parts.append(_number(result.executions, "execution"))
    if result.blocked:
        parts.append(f"{result.blocked:,} that wait")
    return ", ".join(parts)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def print_outcomes(outcomes: Iterable[Outcome]) -> None:
    """A paragraph for each protocol, with a line for each model and the table of each counterexample."""
    for number, (_, group) in enumerate(groupby(outcomes, key=lambda outcome: outcome.job.title)):
        members = list(group)
        sizes = members[0].job.shown_sizes
        if number:
            print()
        print(members[0].job.title + (f": {sizes}" if sizes else ""))
        for outcome in members:
            _print_outcome(outcome)


def _print_outcome(outcome: Outcome) -> None:
    from vtlkit.checker.result import Verdict
    from vtlkit.checker.telling import heading

    job, result = outcome.job, outcome.result
    label = f"  {job.model:<5}"
    if result is None:
        print(f"{label} not begun")
        return
    figures = f"{counts(result)} in {outcome.seconds:.2f} s ({outcome.engine})"
    if result.verdict is Verdict.PROVED:
        # What promises nothing is only counted.
        proved = "all of them" if job.protocol.promises_nothing else f"proved for this size: {PROMISE}"
        print(f"{label} {proved}; {figures}")
    elif result.verdict is Verdict.BOUND:
        print(f"{label} nothing found {'before the bound' if outcome.ended else 'so far'}; {figures}")
    else:
        print(f"{label} BROKEN: {heading(result)}; {figures}")
    for note in result.notes:
        print(f"{'':<8}note: {note}")
    if result.counterexample is not None:
        _print_counterexample(outcome, result, result.counterexample)


def _print_counterexample(outcome: Outcome, result: Result, found: Counterexample) -> None:
    from vtlkit.checker.telling import waits
    from vtlkit.cli.check_table import counterexample_table
    from vtlkit.cli.wide import print_wide

    print_wide(counterexample_table(found, result.names))
    for line in waits(found, result.names):
        print(f"  {line}")
    print(f"  vtlkit check --replay '{outcome.token}'")


def print_json(outcomes: Iterable[Outcome]) -> None:
    """A list with an object for each protocol and model."""
    print(json.dumps([as_dict(outcome) for outcome in outcomes], indent=1))


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """See docs/checking.md."""
    job, result = outcome.job, portable(outcome.result)
    row: dict[str, Any] = {"name": job.protocol.name, "variant": job.variant or None, "sizes": dict(job.sizes)}
    if job.file is not None:
        row["file"] = str(job.file)
    if "n" in job.sizes:
        row["n"] = job.sizes["n"]
    row |= {
        "model": job.model,
        "engine": outcome.engine,
        "verdict": None if result is None else result.verdict.value,
        "interrupted": not outcome.ended,
        "seconds": round(outcome.seconds, 6),
        "token": outcome.token,
    }
    if result is None:
        return row
    for key in ("executions", "blocked", "states", "transitions", "depth", "memory_bytes", "notes"):
        row[key] = getattr(result, key)
    row["counterexample"] = None if result.counterexample is None else _as_dict(result.counterexample, result.names)
    return row


def _as_dict(found: Counterexample, names: tuple[str, ...]) -> dict[str, Any]:
    steps = [
        {
            "task": names[step.thread],
            "what": step.what,
            "place": step.place,
            "location": step.location,
            "read": step.read,
            "written": step.written,
            "source": step.source,
            "stale": step.stale,
            "buffered": step.buffered,
        }
        for step in found.steps
    ]
    waiting = [
        {
            "task": names[each.thread],
            "location": each.location,
            "value": each.value,
            "place": each.place,
            "why": each.why,
            "missed": list(each.missed),
        }
        for each in found.waiting
    ]
    return {
        "kind": found.kind.value,
        "text": found.text,
        "shortest": found.shortest,
        "steps": steps,
        "waiting": waiting,
    }


def print_list(protocols: Mapping[str, Protocol], as_json: bool) -> None:
    """All protocols, by group."""
    if as_json:
        print(json.dumps([_listed(protocol) for protocol in protocols.values()], indent=1))
        return
    width = max(map(len, protocols))
    wide = max(len(_sizes(protocol)) for protocol in protocols.values())
    for number, (group, members) in enumerate(groupby(protocols.values(), key=lambda each: each.heading)):
        print(("\n" if number else "") + group)
        for each in members:
            models = ",".join(each.models)
            print(f"  {each.name:<{width}}  {_sizes(each):<{wide}}  {models:<11}  {each.summary}".rstrip())
            for bad in each.known_bad:
                print(f"  {'':<{width}}  --variant {bad.name}: {bad.summary}")


def _sizes(protocol: Protocol) -> str:
    return " ".join(f"--{name} {value}" for name, value in protocol.sizes.items())


def _listed(protocol: Protocol) -> dict[str, Any]:
    return {
        "name": protocol.name,
        "group": protocol.heading,
        "summary": protocol.summary,
        "sizes": dict(protocol.sizes),
        "large": [dict(sizes) for sizes in protocol.large],
        "models": list(protocol.models),
        "engine": protocol.engine,
        "abstracts": protocol.abstracts,
        "variants": [{"name": bad.name, "summary": bad.summary} for bad in protocol.known_bad],
    }
