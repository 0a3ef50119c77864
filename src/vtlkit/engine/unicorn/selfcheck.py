"""Proves once a process, on a scratch instance, that Unicorn behaves as this adapter relies on.

`state.locate` proves where the words lie; this proves what they do: an intercept exits precisely, the counter counts,
the limit stops, a raised SMI line exits before the next instruction, the interrupt window opens one instruction after
STI, and translated code can be dropped. A failure is an `EngineError` that names the expectation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Access, Cpuid, EngineError, Hlt, Interrupted, InterruptWindow, RamBlock

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.binding import Library

_CODE: Final = b"\x90\x90\x90\x90\x0f\xa2\x40\x40\x40\xfb\x90\x90\xf4"
"""Real mode: four NOPs, CPUID, three INC AX, STI, two NOPs, HLT."""

_checked: set[int] = set()


def check_once(lib: Library) -> None:
    """Run the check unless this library has passed it.

    Raises:
        EngineError: an expectation does not hold.
    """
    if id(lib) in _checked:
        return
    _checked.add(id(lib))
    try:
        _check()
    except BaseException:
        _checked.discard(id(lib))
        raise


def _check() -> None:
    from vtlkit.engine.unicorn.factory import UnicornFactory

    factory = UnicornFactory(counting=True)
    engine = factory.create("self-check")
    block = RamBlock(4096)
    try:
        block.view[: len(_CODE)] = _CODE
        engine.map_ram(0, 4096, block, 0, Access.ALL)
        sregs = engine.get_sregs()
        sregs.cs.selector, sregs.cs.base = 0, 0
        engine.set_sregs(sregs)
        engine.regs.rip = 0
        engine.regs.rax = 0

        reason = engine.run(3)
        _expect(type(reason) is Interrupted and engine.regs.rip == 3, "a limit of three stops after three instructions")
        _expect(engine.instructions() == 3, "the instruction counter counts")
        reason = engine.run(100)
        _expect(type(reason) is Cpuid and engine.regs.rip == 4, "CPUID exits with RIP at it")
        engine.skip(2)
        engine.kick()
        reason = engine.run(100)
        _expect(type(reason) is Interrupted and engine.regs.rip == 6, "a kick exits before the next instruction")
        engine.request_interrupt_window(True)
        reason = engine.run(100)
        _expect(type(reason) is InterruptWindow and engine.regs.rip == 11, "the window opens one instruction after STI")
        _expect(engine.regs.rax & 0xFFFF == 3, "registers are where they are expected")
        reason = engine.run(100)
        _expect(type(reason) is Hlt and engine.regs.rip == 12, "HLT exits with RIP at it")
        block.view[12:14] = b"\x0f\xa2"
        engine.memory_written(12, 2)
        _expect(type(engine.run(100)) is Cpuid, "code that the host has changed is translated anew")
    finally:
        factory.close()


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise EngineError(
            f"this build of Unicorn fails the start-up self-check ({what}); the embedded engine refuses it: "
            "pip install 'unicorn==2.1.4' or use --engine kvm"
        )
