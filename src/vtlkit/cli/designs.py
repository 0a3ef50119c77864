"""Options that choose among rival designs of one mechanism (docs/design)."""

from __future__ import annotations

from typing import Annotated, Final

import typer

FLUSH_INHIBIT_DESIGNS: Final = ("ours", "posted")
"""The values of `kvm.uapi.FlushInhibitDesign`, without the cost of importing it."""


def parse_flush_inhibit(text: str) -> str:
    """`--tlb-flush-inhibit`'s value. Raises typer.BadParameter for another word."""
    if text not in FLUSH_INHIBIT_DESIGNS:
        raise typer.BadParameter(f"'{text}' is not one of {', '.join(FLUSH_INHIBIT_DESIGNS)}")
    return text


FlushInhibitOption = Annotated[
    str,
    typer.Option(
        parser=parse_flush_inhibit, metavar="ours|posted", help="How flushes of an inhibited TLB are held up."
    ),
]
"""`--tlb-flush-inhibit`."""
