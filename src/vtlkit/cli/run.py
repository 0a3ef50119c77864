"""`vtlkit run`: run one guest image until it ends, its serial port on standard output.

Exit status: see `vtlkit.cli.status`. Standard output carries the guest's bytes and nothing else; what the program
itself has to say goes to standard error.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.compose import VENDORS, CannotCompose, EngineChoice, EngineOption, Mode, VendorOption, composed
from vtlkit.cli.console import GuestOutput
from vtlkit.cli.designs import FlushInhibitOption
from vtlkit.cli.hv_features import HvOption, parse_hv
from vtlkit.cli.interruption import Interruption
from vtlkit.cli.quantities import MIB, SEED_MAXIMUM, count_parser, parse_memory, parse_seconds, show_size
from vtlkit.cli.status import BadInput, Status, complain, report_bug
from vtlkit.cli.trace_file import TraceFile, TraceOption, TraceRingOption
from vtlkit.cli.waiting import DEFAULT_WAIT, HaltPollOption, VtlWaitOption, make_design
from vtlkit.hvdef.identifiers import HV_MAX_VTLS

if TYPE_CHECKING:
    from typing import TextIO

    from vtlkit.kvm.uapi import HvFeatures
    from vtlkit.vmm.config import MachineConfig
    from vtlkit.vmm.machine import Machine, RunResult

COMMAND: Final = "vtlkit run"
MAX_CPUS: Final = 255
"""APIC IDs 0 to 254: what xAPIC mode addresses (Intel SDM volume 3, "Local APIC ID")."""
_DEFAULT_MEMORY: Final = 256 * MIB
_MEMORY_HELP: Final = f"Guest memory, such as 64M or 1G.  [default: {show_size(_DEFAULT_MEMORY)}]"
_STANDARD_OUTPUT: Final = 1
TimeoutOption = Annotated[
    float | None, typer.Option(parser=parse_seconds, metavar="S", help="End the run after S seconds (status 124).")
]


def run(
    guest: Annotated[
        str,
        typer.Argument(metavar="GUEST", help="A multiboot, PVH or ELF64 image, or one of ours: demo, vtls3, bench."),
    ],
    cpus: Annotated[
        int, typer.Option(parser=count_parser(1, MAX_CPUS), metavar="N", help=f"Virtual processors, 1 to {MAX_CPUS}.")
    ] = 1,
    memory: Annotated[
        int, typer.Option(parser=parse_memory, metavar="SIZE", help=_MEMORY_HELP, show_default=False)
    ] = _DEFAULT_MEMORY,
    engine: EngineOption = EngineChoice.AUTO,
    vtls: Annotated[
        int,
        typer.Option(
            parser=count_parser(1, HV_MAX_VTLS),
            metavar="N",
            help=f"Virtual Trust Levels that the guest may enable, 1 to {HV_MAX_VTLS}.",
        ),
    ] = 2,
    hv: HvOption = "all",
    vendor: VendorOption = VENDORS[0],
    nested: Annotated[bool, typer.Option("--nested", help="Guests may run guests of their own (SVM).")] = False,
    append: Annotated[str, typer.Option(metavar="ARGS", help="The guest's command line.")] = "",
    initrd: Annotated[str, typer.Option(metavar="FILE", help="An initial RAM disk, or multiboot module.")] = "",
    seed: Annotated[
        int | None,
        typer.Option(
            parser=count_parser(0, SEED_MAXIMUM), metavar="N", help="Draw the order of virtual processors from seed N."
        ),
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Run on threads and in real time, not reproducibly.")
    ] = False,
    timeout: TimeoutOption = None,
    vtl_wait: VtlWaitOption = DEFAULT_WAIT,
    halt_poll: HaltPollOption = 0,
    tlb_flush_inhibit: FlushInhibitOption = "ours",
    trace: TraceOption = "",
    trace_ring: TraceRingOption = None,
    json_file: Annotated[str, typer.Option("--json", metavar="FILE", help="Write the summary as JSON.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="No summary on standard error.")] = False,
) -> int:
    """Run a guest image.

    The guest's serial port is standard output; a summary follows on standard error. A guest that writes v to port 0xf4
    ends the run with status (v << 1) | 1. Power-off is status 0, bad input 2, a triple fault 3, a time-out 124.
    """
    from vtlkit.vmm.config import MachineConfig

    config = MachineConfig(
        cpus=cpus,
        memory=memory,
        vtls=vtls,
        append=append,
        initrd=Path(initrd) if initrd else None,
        hyperv=_hyperv(hv),
        vendor=vendor,
        vtl_wait=make_design(vtl_wait),
        halt_poll_ns=halt_poll * 1000,
        tlb_flush_inhibit=tlb_flush_inhibit,
        nested=nested,
    )
    mode = Mode(engine, realtime, seed)
    path = find_guest(guest)
    report = _open_report(json_file)
    try:
        with TraceFile(COMMAND, trace, trace_ring) as written:
            people = None if quiet else sys.stderr
            status = _run(path, config, mode, timeout, people, report, written)
        return written.status or status
    except CannotCompose as error:
        raise BadInput(COMMAND, str(error)) from None
    finally:
        if report is not None:
            report.close()


def _hyperv(text: str) -> HvFeatures | None:
    """What `--hv` selects. Raises BadInput."""
    try:
        return parse_hv(text)
    except ValueError as error:
        raise BadInput(COMMAND, f"--hv: {error}") from None


def find_guest(name: str) -> Path:
    """The file of a shipped guest, or else the path `name`. Raises BadInput for a name that is neither."""
    from vtlkit import guests

    if name in guests.names():
        return guests.path(name)
    if "/" not in name and not os.path.lexists(name):
        known = ", ".join(guests.names())
        raise BadInput(COMMAND, f"no file '{name}' here, and no guest of that name comes with vtlkit ({known} do)")
    return Path(name)


def _open_report(name: str) -> TextIO | None:
    """Opened before the run: a run should not end in finding out that its summary cannot be written."""
    if not name:
        return None
    try:
        return open(name, "w", encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(COMMAND, f"--json {name}: {reason}; give a file that can be written") from None


def _run(
    path: Path,
    config: MachineConfig,
    mode: Mode,
    timeout: float | None,
    people: TextIO | None,
    report: TextIO | None,
    trace: TraceFile,
) -> int:
    from vtlkit.cli.summary import Summary
    from vtlkit.vmm.loaders import LoadError

    def stop(reason: str) -> None:
        output.stopping = True
        machine.stop(reason)

    output = GuestOutput(_STANDARD_OUTPUT, on_failure=lambda: stop("interrupted"))
    with composed(mode, config, output.write, trace.start) as machine:
        try:
            machine.load(path)
        except LoadError as error:
            raise BadInput(COMMAND, str(error)) from None
        with Interruption(stop, timeout) as interruption:
            begin = time.perf_counter()
            try:
                result = _run_machine(machine)
            except Exception as error:  # noqa: BLE001 - an error of ours ends with a status of its own
                _end_line(output)
                report_bug(error, mode.reproduce())
                return Status.BUG
            wall = time.perf_counter() - begin
    if output.reader_gone:
        return Status.BROKEN_PIPE
    _end_line(output)
    status = _status(result, output, interruption)
    _explain(result, output, timeout, mode)
    failure = "" if output.error is None else os.strerror(output.error.errno or 0)
    summary = Summary(result, status, wall, mode.realtime, mode.seed, failure)
    if people is not None:
        print(summary.to_text(), file=people)
    if report is not None:
        report.write(summary.to_json())
    return status


def _run_machine(machine: Machine) -> RunResult:
    """A guest that can never run again is the guest's own doing, on the host that is able to find out."""
    from vtlkit.host.sim import Deadlock

    try:
        return machine.run()
    except Deadlock as error:
        return dataclasses.replace(machine.result(), message=str(error))


def _status(result: RunResult, output: GuestOutput, interruption: Interruption) -> int:
    from vtlkit.vmm.machine import Outcome

    if output.error is not None:
        return Status.OUTPUT_FAILED
    if result.outcome in (Outcome.INTERRUPTED, Outcome.TIMEOUT) and interruption.status is not None:
        return interruption.status
    return result.status


def _end_line(output: GuestOutput) -> None:
    """Start a fresh line where the guest's last one, unfinished, is on the terminal that this program speaks to."""
    if not output.at_line_start and os.isatty(_STANDARD_OUTPUT) and sys.stderr.isatty():
        print(file=sys.stderr)


def _explain(result: RunResult, output: GuestOutput, timeout: float | None, mode: Mode) -> None:
    """Say why the run failed, if it did, and how to see it fail again; with --quiet, too."""
    from vtlkit.vmm.machine import Outcome

    if output.error is not None:
        complain(COMMAND, f"standard output: {output.error.strerror}")
    elif result.outcome is Outcome.TIMEOUT:
        complain(COMMAND, f"the guest had not ended after {timeout:g} s")
    elif result.outcome in (Outcome.TRIPLE_FAULT, Outcome.INTERNAL_ERROR, Outcome.DEADLOCK):
        first, *rest = result.message.splitlines()
        complain(COMMAND, first)
        for line in (*rest, *result.crash.splitlines()):
            print(line, file=sys.stderr)
        if mode.reproduce():
            complain(COMMAND, mode.reproduce())
