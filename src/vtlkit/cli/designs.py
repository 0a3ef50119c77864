"""Options that choose among rival designs of one mechanism (docs/design)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vtlkit.kvm.uapi import FlushInhibitDesign


def parse_flush_inhibit(text: str) -> FlushInhibitDesign:
    """`--tlb-flush-inhibit`'s value. Raises typer.BadParameter for another word."""
    from vtlkit.kvm.uapi import FlushInhibitDesign

    try:
        return FlushInhibitDesign(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not one of {', '.join(FlushInhibitDesign)}") from None


FlushInhibitOption = Annotated[
    Any,
    typer.Option(
        parser=parse_flush_inhibit, metavar="ours|posted", help="How flushes of an inhibited TLB are held up."
    ),
]
"""`--tlb-flush-inhibit`: a `FlushInhibitDesign`."""
