"""The words of `vtlkit run` that say what the machine is and how it runs."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from vtlkit.cli.quantities import MIB, SEED_MAXIMUM, count_parser, parse_memory, parse_seconds, show_size
from vtlkit.hvdef.identifiers import HV_MAX_VTLS

MAX_CPUS: Final = 255
"""APIC IDs 0 to 254: what xAPIC mode addresses (Intel SDM volume 3, "Local APIC ID")."""
DEFAULT_MEMORY: Final = 256 * MIB
HALT_POLL_MAXIMUM: Final = 1_000_000
"""A second, in us: longer than any guest's timer tick."""
_MEMORY_HELP: Final = f"Guest memory, such as 64M or 1G.  [default: {show_size(DEFAULT_MEMORY)}]"

Guest = Annotated[
    str, typer.Argument(metavar="GUEST", help="A multiboot, PVH or ELF64 image, or one of ours: demo, vtls3, bench.")
]
Cpus = Annotated[
    int, typer.Option(parser=count_parser(1, MAX_CPUS), metavar="N", help=f"Virtual processors, 1 to {MAX_CPUS}.")
]
Memory = Annotated[int, typer.Option(parser=parse_memory, metavar="SIZE", help=_MEMORY_HELP, show_default=False)]
Vtls = Annotated[
    int,
    typer.Option(
        parser=count_parser(1, HV_MAX_VTLS),
        metavar="N",
        help=f"Virtual Trust Levels that the guest may enable, 1 to {HV_MAX_VTLS}.",
    ),
]
Nested = Annotated[bool, typer.Option("--nested", help="Guests may run guests of their own (SVM).")]
Append = Annotated[str, typer.Option(metavar="ARGS", help="The guest's command line.")]
Initrd = Annotated[str, typer.Option(metavar="FILE", help="An initial RAM disk, or multiboot module.")]
Seed = Annotated[
    int | None,
    typer.Option(
        parser=count_parser(0, SEED_MAXIMUM), metavar="N", help="Draw the order of virtual processors from seed N."
    ),
]
Realtime = Annotated[bool, typer.Option("--realtime", help="Run on threads and in real time, not reproducibly.")]
Timeout = Annotated[
    float | None, typer.Option(parser=parse_seconds, metavar="S", help="End the run after S seconds (status 124).")
]
HaltPoll = Annotated[
    int,
    typer.Option(
        parser=count_parser(0, HALT_POLL_MAXIMUM),
        metavar="US",
        help="How long a halted vCPU polls at most before it sleeps, in microseconds.",
    ),
]
JsonFile = Annotated[str, typer.Option("--json", metavar="FILE", help="Write the summary as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No summary on standard error.")]
