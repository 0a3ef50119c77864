"""The parameters of one hypercall: the one decoder, for the hypervisor's handlers and for user space (TLFS, "Hypercall
Interface"; the marshalling half of arch/x86/kvm/hyperv.c).

Promise: whatever a guest put into registers and memory, decoding ends in a legal HV_STATUS, reads only memory that the
caller may read, and `commit` writes only memory that it may write; nothing here raises for what a guest did. One
function, `_refusal`, decides about every parameter and output page.

Shares nothing: an object belongs to the task that decodes. Guest memory may change under it: the input is read once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol

from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.hvdef.hypercalls import (
    HV_HYPERCALL_CALL_CODE,
    HV_HYPERCALL_FAST,
    HV_HYPERCALL_FAST_INPUT_REGISTERS_SIZE,
    HV_HYPERCALL_FAST_XMM_SIZE,
    HV_HYPERCALL_IS_NESTED,
    HV_HYPERCALL_PARAMETER_ALIGNMENT,
    HV_HYPERCALL_REP_COUNT,
    HV_HYPERCALL_REP_START_INDEX,
    HV_HYPERCALL_RSVD_MASK,
    HV_HYPERCALL_VARIABLE_HEADER_SIZE,
    hypercall_result,
)
from vtlkit.hvdef.identifiers import GPA_LIMIT
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.errors import GuestMemoryError
from vtlkit.kvm.hyperv.layouts import LAYOUTS, HypercallLayout
from vtlkit.kvm.kvm_run import Hyperv

CONTROL_RESERVED: Final = HV_HYPERCALL_RSVD_MASK | HV_HYPERCALL_IS_NESTED.mask
"""Bits of the input value that must be zero; there is no hypervisor below this one that a nested call could reach."""
CODE_MASK: Final = HV_HYPERCALL_CALL_CODE.mask
FAST_XMM_BYTES: Final = HV_HYPERCALL_FAST_XMM_SIZE - HV_HYPERCALL_FAST_INPUT_REGISTERS_SIZE
"""XMM0 to XMM5."""

_FAST = HV_HYPERCALL_FAST.mask
_VARIABLE_LO, _VARIABLE_MAX = HV_HYPERCALL_VARIABLE_HEADER_SIZE.lo, HV_HYPERCALL_VARIABLE_HEADER_SIZE.max
_COUNT_LO, _COUNT_MAX = HV_HYPERCALL_REP_COUNT.lo, HV_HYPERCALL_REP_COUNT.max
_START_LO, _START_MAX = HV_HYPERCALL_REP_START_INDEX.lo, HV_HYPERCALL_REP_START_INDEX.max
REP_START_MASK: Final = HV_HYPERCALL_REP_START_INDEX.mask
_QWORD = 8
_PAIR = 16
_REGISTERS = HV_HYPERCALL_FAST_INPUT_REGISTERS_SIZE
_ALIGNMENT = HV_HYPERCALL_PARAMETER_ALIGNMENT - 1
_PAGE_MASK = PAGE_SIZE - 1
_TWO_QWORDS = struct.Struct("<QQ")


class ParameterMemory(Protocol):
    """Guest-physical memory as the calling VTL may access it (`kvm.memory.GuestMemory`)."""

    def check(self, gpa: int, size: int, access: Access) -> bool: ...

    def read_for_guest(self, gpa: int, size: int) -> bytes: ...

    def write_for_guest(self, gpa: int, data: bytes) -> None: ...


class Hypercall:
    """One hypercall being executed. `measure`, then `fetch`, then the handler, then `finish`.

    `variable_header_size` is in bytes here. `input_gpa` and `output_gpa` are the register parameters of a fast call.
    `reps_done` is the total of completed elements, counted from the start of the list: a handler of a rep call sets it;
    one that returns SUCCESS with fewer than `rep_count` is called again from there, after pending events.
    """

    __slots__ = (
        "_high",
        "_low",
        "_output",
        "code",
        "control",
        "data",
        "fast",
        "header_size",
        "input_gpa",
        "input_size",
        "is_64bit",
        "layout",
        "memory",
        "output_gpa",
        "output_size",
        "read_xmm",
        "reissue",
        "rep_count",
        "rep_start",
        "reps_done",
        "variable_header_size",
        "xmm_output",
    )

    def __init__(
        self,
        control: int,
        input_gpa: int,
        output_gpa: int,
        memory: ParameterMemory,
        read_xmm: Callable[[], bytes],
        *,
        is_64bit: bool = True,
    ) -> None:
        """`read_xmm` returns XMM0 to XMM5, 96 bytes, and is called only if the input lies there."""
        self.control = control
        self.code = control & CODE_MASK
        self.fast = control & _FAST != 0
        self.variable_header_size = (control >> _VARIABLE_LO & _VARIABLE_MAX) * _QWORD
        self.rep_count = control >> _COUNT_LO & _COUNT_MAX
        self.rep_start = self.reps_done = control >> _START_LO & _START_MAX
        self.input_gpa = input_gpa
        self.output_gpa = output_gpa
        self.memory = memory
        self.is_64bit = is_64bit
        self.reissue = False
        """The handler can not go on now (a TLB lock): the instruction is to be executed again, as it is."""
        self.layout: HypercallLayout | None = None
        self.input_size = self.header_size = self.output_size = 0
        self.data = b""
        self.xmm_output: bytes | None = None
        """XMM0 to XMM5 after `commit`, if the output changed them."""
        self.read_xmm = read_xmm
        self._output: bytearray | None = None
        self._low = self._high = 0

    # --- decoding -------------------------------------------------------------------------------------------------

    def measure(self, layout: HypercallLayout) -> HvStatus:
        """Check the input value against the call's layout and compute the sizes; touches no guest state."""
        self.layout = layout
        variable = self.variable_header_size
        if variable and not layout.variable_header:
            return HvStatus.INVALID_HYPERCALL_INPUT
        self.header_size = self.input_size = layout.input_size + variable
        self.output_size = layout.output_size
        if layout.rep:
            if self.rep_start >= self.rep_count:
                return HvStatus.INVALID_HYPERCALL_INPUT
            self.input_size += self.rep_count * layout.input_element
            self.output_size += self.rep_count * layout.output_element
        elif self.rep_count or self.rep_start:
            return HvStatus.INVALID_HYPERCALL_INPUT
        if self.fast and not self._fits_registers():
            return HvStatus.INVALID_HYPERCALL_INPUT
        return HvStatus.SUCCESS

    def _fits_registers(self) -> bool:
        if not self.output_size:
            return self.input_size <= HV_HYPERCALL_FAST_XMM_SIZE
        return self.is_64bit and self._output_start() + self.output_size <= HV_HYPERCALL_FAST_XMM_SIZE

    def _output_start(self) -> int:
        """Where output begins in the block of registers: the first pair of them that holds no input."""
        return (self.input_size + _PAIR - 1) // _PAIR * _PAIR

    @property
    def uses_xmm_input(self) -> bool:
        return self.fast and self.input_size > _REGISTERS

    def fetch(self) -> HvStatus:
        """Read the input that `measure` found into `data`, and check that the output can be written."""
        data = self.input(self.input_size)
        if not isinstance(data, bytes):
            return data
        if self.output_size and not self.fast:
            refusal = self._refusal(self.output_gpa, self.output_size, Access.WRITE)
            if refusal:
                return refusal
        self.data = data
        return HvStatus.SUCCESS

    def input(self, size: int) -> bytes | HvStatus:
        """The first `size` bytes of input, or why they can not be had. Reads guest memory anew each time."""
        if self.fast:
            if size <= _REGISTERS:
                return _TWO_QWORDS.pack(self.input_gpa, self.output_gpa)[:size]
            if size > HV_HYPERCALL_FAST_XMM_SIZE:
                return HvStatus.INVALID_HYPERCALL_INPUT
            return (_TWO_QWORDS.pack(self.input_gpa, self.output_gpa) + self.read_xmm())[:size]
        if not size:
            return b""
        refusal = self._refusal(self.input_gpa, size, Access.READ)
        if refusal:
            return refusal
        try:
            return self.memory.read_for_guest(self.input_gpa, size)
        except GuestMemoryError:
            # Taken away between check and use, by another vCPU's doing.
            return HvStatus.INVALID_HYPERCALL_INPUT

    def _refusal(self, gpa: int, size: int, access: Access) -> HvStatus:
        """Why the caller may not pass parameters at [gpa, gpa + size); SUCCESS if it may."""
        if gpa & _ALIGNMENT or (gpa & _PAGE_MASK) + size > PAGE_SIZE or gpa >= GPA_LIMIT:
            return HvStatus.INVALID_ALIGNMENT
        if not self.memory.check(gpa, size, access):
            return HvStatus.INVALID_HYPERCALL_INPUT
        return HvStatus.SUCCESS

    @property
    def variable_header(self) -> bytes:
        """What follows the fixed part of the header."""
        return self.data[self.header_size - self.variable_header_size : self.header_size]

    def element(self, index: int) -> bytes:
        """Input list element `index`, counted from the start of the list."""
        assert self.layout is not None
        size = self.layout.input_element
        start = self.header_size + index * size
        return self.data[start : start + size]

    # --- answering ------------------------------------------------------------------------------------------------

    def write_output(self, data: bytes, offset: int = 0) -> None:
        """Put `data` at byte `offset` of the output. The guest sees it after `commit`."""
        assert offset >= 0
        assert offset + len(data) <= self.output_size
        if self._output is None:
            self._output = bytearray(self.output_size)
            self._low, self._high = offset, offset + len(data)
        else:
            self._low, self._high = min(self._low, offset), max(self._high, offset + len(data))
        self._output[offset : offset + len(data)] = data

    def write_element(self, index: int, data: bytes) -> None:
        """Put `data` into output list element `index`, counted from the start of the list."""
        assert self.layout is not None
        self.write_output(data, self.layout.output_size + index * self.layout.output_element)

    def commit(self) -> HvStatus:
        """Make the output visible: in memory, or in `input_gpa`, `output_gpa` and `xmm_output` for a fast call."""
        if self._output is None:
            return HvStatus.SUCCESS
        written = bytes(self._output[self._low : self._high])
        if not self.fast:
            try:
                self.memory.write_for_guest(self.output_gpa + self._low, written)
            except GuestMemoryError:
                return HvStatus.INVALID_HYPERCALL_INPUT
            return HvStatus.SUCCESS
        block = bytearray(_TWO_QWORDS.pack(self.input_gpa, self.output_gpa) + self.read_xmm())
        start = self._output_start()
        block[start + self._low : start + self._high] = written
        self.input_gpa, self.output_gpa = _TWO_QWORDS.unpack_from(block)
        self.xmm_output = bytes(block[_REGISTERS:])
        return HvStatus.SUCCESS

    def finish(self, status: HvStatus) -> int | None:
        """Commit the output; the result value, or None if the call is to go on with `control` as its input value."""
        if self._output is not None:
            status = self.commit() or status
        if status or self.layout is None or not self.layout.rep:
            return hypercall_result(status, self.reps_done)
        if self.reps_done >= self.rep_count:
            return hypercall_result(status, self.rep_count)
        assert self.reps_done > self.rep_start, "a rep call that makes no progress"
        self.control = self.control & ~REP_START_MASK | self.reps_done << _START_LO
        return None


class HypercallParameters(Hypercall):
    """A hypercall that exited to user space, which decodes it with `decode_exit` and answers it with `result`."""

    __slots__ = ("exit", "status")

    def __init__(self, exit: Hyperv, memory: ParameterMemory) -> None:  # noqa: A002
        super().__init__(exit.control, exit.input_gpa, exit.output_gpa, memory, lambda: exit.xmm)
        self.exit = exit
        self.status = HvStatus.SUCCESS
        """What decoding came to: if it is not SUCCESS there is no input, and it is the answer."""

    def retry(self) -> None:
        """Answer that the call cannot be executed now: the instruction is to be executed again, as it is."""
        self.reissue = True
        self.exit.retry = True

    def result(self, status: HvStatus, reps_done: int | None = None) -> None:
        """Fill the exit with the answer, unless there is to be none (`retry`).

        A rep call with SUCCESS and `reps_done` < `rep_count` will exit again.
        """
        if self.reissue:
            return
        if reps_done is not None:
            self.reps_done = reps_done
        elif not status:
            self.reps_done = self.rep_count
        value = self.finish(status)
        answer = self.exit
        answer.input_gpa, answer.output_gpa = self.input_gpa, self.output_gpa
        if self.xmm_output is not None:
            answer.xmm = self.xmm_output
        if value is None:
            answer.control, answer.retry = self.control, True
        else:
            answer.result = value


def decode_exit(exit: Hyperv, memory: ParameterMemory) -> HypercallParameters:  # noqa: A002
    """The parameters of a hypercall that exited. `memory` is that of the caller's VTL: its rights are what counts.

    The input of a call with a known layout is in `data`; that of any other is had by `input(size)`.
    """
    call = HypercallParameters(exit, memory)
    layout = LAYOUTS.get(call.code)
    if layout is not None and not layout.vtl_switch:
        call.status = call.measure(layout) or call.fetch()
    return call
