"""What a run amounted to, for people (a few lines on standard error) and for programs (one JSON object)."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtlkit.kvm.statistics import MANY_KICKED_ENTRIES

if TYPE_CHECKING:
    from vtlkit.vmm.machine import RunResult

_WIDTH = 100
"""Columns that the list of exits may take."""
_INDENT = " " * 16


@dataclass(frozen=True, slots=True)
class Summary:
    """A finished run; `status` is the process's exit status."""

    result: RunResult
    status: int
    wall_seconds: float
    realtime: bool
    seed: int | None
    output_error: str = ""
    """Why standard output took no more, if that ended the run."""

    def to_text(self) -> str:
        """A heading and a handful of lines, each a label and its figures; counts in descending order."""
        result = self.result
        lines = [
            f"vtlkit: {'output failed' if self.output_error else result.outcome.value}, status {self.status}",
            _counts("exits", result.exits),
            _counts("to the VMM", result.user_exits),
            _line("VTL switches", f"{result.vtl_switches:,}"),
        ]
        if result.kicked_entries >= MANY_KICKED_ENTRIES:
            lines.append(_line("kicked", f"{result.kicked_entries:,} calls of run() before the resume: a busy loop"))
        if result.instructions is not None:
            lines.append(_line("instructions", f"{result.instructions:,}"))
        lines.append(_line("time", f"{self.wall_seconds:.3f} s wall clock, {self._guest_time()}"))
        return "\n".join(lines)

    def _guest_time(self) -> str:
        return f"{self.result.virtual_ns / 1e9:.6f} s {'since the start' if self.realtime else 'virtual'}"

    def to_json(self) -> str:
        """One JSON object on one line, and a line break."""
        result = self.result
        data: dict[str, Any] = {
            "outcome": "output_failed" if self.output_error else result.outcome.name.lower(),
            "status": self.status,
            "message": f"standard output: {self.output_error}" if self.output_error else result.message,
            "exits": dict(sorted(result.exits.items())),
            "user_exits": dict(sorted(result.user_exits.items())),
            "vtl_switches": result.vtl_switches,
            "kicked_entries": result.kicked_entries,
            "instructions": result.instructions,
            "virtual_ns": result.virtual_ns,
            "wall_seconds": round(self.wall_seconds, 6),
            "realtime": self.realtime,
            "seed": self.seed,
        }
        if result.crash:
            data["crash"] = result.crash
        return json.dumps(data) + "\n"


def _line(label: str, text: str) -> str:
    return f"  {label:<14}{text}"


def _counts(label: str, counts: Counter[str]) -> str:
    """`exits  1,234: cpuid 1,000, io 234`, broken between two reasons where the line would become too long."""
    total = sum(counts.values())
    lines = [_line(label, f"{total:,}")]
    separator = ": "
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        word = f"{name} {count:,}"
        if len(lines[-1]) + len(separator) + len(word) > _WIDTH:
            lines[-1] += separator.rstrip()
            lines.append(_INDENT + word)
        else:
            lines[-1] += separator + word
        separator = ", "
    return "\n".join(lines)
