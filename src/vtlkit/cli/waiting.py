"""`--vtl-wait` and `--halt-poll`: how vCPUs wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.quantities import count_parser

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vtl_wait import VtlWait

DESIGNS: Final = ("mp-state", "wait", "completion", "poll")
"""`vtl_wait.VtlWait`'s values: the machine is not imported for the sake of --help."""
DEFAULT_WAIT: Final = "poll"
_HALT_POLL_MAXIMUM: Final = 1_000_000
"""A second, in us: longer than any guest's timer tick."""


def parse_wait(text: str) -> str:
    """`--vtl-wait`'s value. Raises typer.BadParameter for another word."""
    if text not in DESIGNS:
        raise typer.BadParameter(f"'{text}' is not one of {', '.join(DESIGNS)}")
    return text


def make_design(name: str) -> VtlWait:
    """The design of that name."""
    from vtlkit.vmm.vsm.vtl_wait import VtlWait

    return VtlWait(name)


VtlWaitOption = Annotated[
    str,
    typer.Option(parser=parse_wait, metavar="|".join(DESIGNS), help="How events for inactive VTLs are heard of."),
]
HaltPollOption = Annotated[
    int,
    typer.Option(
        parser=count_parser(0, _HALT_POLL_MAXIMUM),
        metavar="US",
        help="How long a halted vCPU polls at most before it sleeps, in microseconds.",
    ),
]
