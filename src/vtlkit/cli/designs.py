"""Options that choose among rival designs of one mechanism (docs/design).

They take the values of the designs' enumerations, which would take too long to import for --help.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from vtlkit.cli.words import word_parser

VTL_WAITS: Final = ("mp-state", "wait", "completion", "poll")
"""As `vtlkit.vmm.vsm.vtl_wait.VtlWait`."""
FLUSH_INHIBITS: Final = ("ours", "posted")
"""As `vtlkit.kvm.uapi.FlushInhibitDesign`."""

VtlWaitOption = Annotated[
    str,
    typer.Option(
        parser=word_parser(VTL_WAITS), metavar="|".join(VTL_WAITS), help="How events for inactive VTLs are heard of."
    ),
]
"""`--vtl-wait`."""
FlushInhibitOption = Annotated[
    str,
    typer.Option(
        parser=word_parser(FLUSH_INHIBITS),
        metavar="|".join(FLUSH_INHIBITS),
        help="How flushes of an inhibited TLB are held up.",
    ),
]
"""`--tlb-flush-inhibit`."""
