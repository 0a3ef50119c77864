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
from typing import TYPE_CHECKING, Final

from vtlkit.cli import run_options as options
from vtlkit.cli.compose import (
    NO_EXECUTE,
    VENDORS,
    CannotCompose,
    EngineChoice,
    EngineOption,
    Mode,
    NoExecuteOption,
    VendorOption,
    composed,
)
from vtlkit.cli.console import GuestOutput
from vtlkit.cli.designs import FlushInhibitOption, VtlWaitOption
from vtlkit.cli.hv_features import HvOption, parse_hv
from vtlkit.cli.interruption import Interruption
from vtlkit.cli.status import BadInput, Status, complain, report_bug
from vtlkit.cli.trace_file import TraceFile, TraceOption, TraceRingOption

if TYPE_CHECKING:
    from typing import TextIO

    from vtlkit.kvm.uapi import HvFeatures
    from vtlkit.vmm.config import MachineConfig
    from vtlkit.vmm.machine import Machine, RunResult

COMMAND: Final = "vtlkit run"
_STANDARD_OUTPUT: Final = 1


def run(
    guest: options.Guest,
    cpus: options.Cpus = 1,
    memory: options.Memory = options.DEFAULT_MEMORY,
    engine: EngineOption = EngineChoice.AUTO,
    vtls: options.Vtls = 2,
    hv: HvOption = "all",
    vendor: VendorOption = VENDORS[0],
    nested: options.Nested = False,
    append: options.Append = "",
    initrd: options.Initrd = "",
    seed: options.Seed = None,
    realtime: options.Realtime = False,
    no_execute: NoExecuteOption = NO_EXECUTE[0],
    timeout: options.Timeout = None,
    vtl_wait: VtlWaitOption = "poll",
    halt_poll: options.HaltPoll = 0,
    tlb_flush_inhibit: FlushInhibitOption = "ours",
    trace: TraceOption = "",
    trace_ring: TraceRingOption = None,
    json_file: options.JsonFile = "",
    quiet: options.Quiet = False,
) -> int:
    """Run a guest image.

    The guest's serial port is standard output; a summary follows on standard error. A guest that writes v to port 0xf4
    ends the run with status (v << 1) | 1. Power-off is status 0, bad input 2, a triple fault 3, a time-out 124.
    """
    from vtlkit.kvm.uapi import FlushInhibitDesign
    from vtlkit.vmm.config import MachineConfig
    from vtlkit.vmm.vsm.vtl_wait import VtlWait

    config = MachineConfig(
        cpus=cpus,
        memory=memory,
        vtls=vtls,
        append=append,
        initrd=Path(initrd) if initrd else None,
        hyperv=_hyperv(hv),
        vendor=vendor,
        vtl_wait=VtlWait(vtl_wait),
        halt_poll_ns=halt_poll * 1000,
        tlb_flush_inhibit=FlushInhibitDesign(tlb_flush_inhibit),
        nested=nested,
    )
    mode = Mode(engine, realtime, seed, no_execute)
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
    summary = Summary(result, status, wall, mode.real, mode.seed, failure)
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
