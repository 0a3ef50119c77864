"""The arithmetic flags as an exit finds them, against a small model: that an engine keeps them lazily must not show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.engine import api
from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.testing.engine_conformance.suite import DATA, IO, Bench, Need, case, describe
from vtlkit.testing.guest_builder import CODE, STACK
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import (
    RFLAGS_AF,
    RFLAGS_CF,
    RFLAGS_FIXED,
    RFLAGS_OF,
    RFLAGS_PF,
    RFLAGS_RF,
    RFLAGS_SF,
    RFLAGS_ZF,
)

_REGISTERS: Final = {1: ("al", "bl"), 2: ("ax", "bx"), 4: ("eax", "ebx"), 8: ("rax", "rbx")}
_ALL: Final = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF
_NO_AF: Final = _ALL & ~RFLAGS_AF


def _result(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    flags = RFLAGS_ZF if value == 0 else 0
    flags |= RFLAGS_SF if value >> (bits - 1) else 0
    flags |= RFLAGS_PF if bin(value & 0xFF).count("1") % 2 == 0 else 0
    return flags


def _add(a: int, b: int, carry: int, bits: int) -> int:
    total = a + b + carry
    flags = _result(total, bits)
    flags |= RFLAGS_CF if total >> bits else 0
    flags |= RFLAGS_AF if (a & 15) + (b & 15) + carry > 15 else 0
    flags |= RFLAGS_OF if (~(a ^ b) & (a ^ total)) >> (bits - 1) & 1 else 0
    return flags


def _sub(a: int, b: int, borrow: int, bits: int) -> int:
    flags = _result(a - b - borrow, bits)
    flags |= RFLAGS_CF if a < b + borrow else 0
    flags |= RFLAGS_AF if (a & 15) < (b & 15) + borrow else 0
    flags |= RFLAGS_OF if ((a ^ b) & (a ^ (a - b - borrow))) >> (bits - 1) & 1 else 0
    return flags


def _shl(a: int, bits: int) -> int:
    flags = _result(a << 1, bits)
    carry = a >> (bits - 1) & 1
    return flags | (RFLAGS_CF if carry else 0) | (RFLAGS_OF if carry ^ (a >> (bits - 2) & 1) else 0)


def _shr(a: int, bits: int) -> int:
    return _result(a >> 1, bits) | (a & RFLAGS_CF) | (RFLAGS_OF if a >> (bits - 1) else 0)


def _sar(a: int, bits: int) -> int:
    sign = a & 1 << (bits - 1)
    return _result(a >> 1 | sign, bits) | (a & RFLAGS_CF)


Model = Callable[[int, int, int, int], int]

_BINARY: Final[dict[str, tuple[Model, int]]] = {
    "add": (lambda a, b, _, bits: _add(a, b, 0, bits), _ALL),
    "adc": (lambda a, b, old, bits: _add(a, b, old & 1, bits), _ALL),
    "sub": (lambda a, b, _, bits: _sub(a, b, 0, bits), _ALL),
    "sbb": (lambda a, b, old, bits: _sub(a, b, old & 1, bits), _ALL),
    "cmp": (lambda a, b, _, bits: _sub(a, b, 0, bits), _ALL),
    "and": (lambda a, b, _, bits: _result(a & b, bits), _NO_AF),
    "or": (lambda a, b, _, bits: _result(a | b, bits), _NO_AF),
    "xor": (lambda a, b, _, bits: _result(a ^ b, bits), _NO_AF),
    "test": (lambda a, b, _, bits: _result(a & b, bits), _NO_AF),
}
_UNARY: Final[dict[str, tuple[Model, int]]] = {
    "inc": (lambda a, _, old, bits: _add(a, 1, 0, bits) & ~RFLAGS_CF | old & RFLAGS_CF, _ALL),
    "dec": (lambda a, _, old, bits: _sub(a, 1, 0, bits) & ~RFLAGS_CF | old & RFLAGS_CF, _ALL),
    "neg": (lambda a, _, __, bits: _sub(0, a, 0, bits), _ALL),
    "shl": (lambda a, _, __, bits: _shl(a, bits), _NO_AF),
    "shr": (lambda a, _, __, bits: _shr(a, bits), _NO_AF),
    "sar": (lambda a, _, __, bits: _sar(a, bits), _NO_AF),
}


def _values(bits: int) -> list[int]:
    top = 1 << (bits - 1)
    return [0, 1, 0xF, 0x10, 0x7F, 0x80 & (top * 2 - 1), top - 1, top, top + 1, top * 2 - 2, top * 2 - 1]


@case(Need.MACHINE_CODE)
def flags_at_an_exit(bench: Bench) -> None:
    """RFLAGS read at an intercept right behind the instruction."""
    guest = bench.guest()
    guest.long_mode()
    engine = guest.engine
    at = CODE
    for size, (first, second) in _REGISTERS.items():
        bits = 8 * size
        for name, (model, mask) in (*_BINARY.items(), *_UNARY.items()):
            a = guest.assembler(base=at)
            operands = (first, second) if name in _BINARY else (first, 1) if name[0] == "s" else (first,)
            getattr(a, f"{name}_")(*operands)
            a.cpuid()
            guest.load(a)
            for x in _values(bits):
                for y in _values(bits) if name in _BINARY else (0,):
                    old = (x ^ y) & 1
                    engine.regs.rip, engine.regs.rax, engine.regs.rbx = at, x, y
                    engine.rflags = RFLAGS_FIXED | old
                    assert isinstance(engine.run(10), bench.marker)
                    got, wanted = engine.rflags & mask, model(x, y, old, bits) & mask
                    assert got == wanted, (name, size, hex(x), hex(y), old, hex(got), hex(wanted))
            at += 16


@case(Need.MACHINE_CODE)
def flags_at_every_kind_of_exit(bench: Bench) -> None:
    """Behind ADD and behind two ADDs: intercepts, port and memory exits, faults of the map, page faults, traps."""
    for code in (
        b"\x0f\xa2",  # cpuid
        b"\xf4",  # hlt
        b"\xe4\x60",  # in al, 0x60
        b"\xe6\x60",  # out 0x60, al
        b"\x8b\x0e",  # mov ecx, [rsi]: exit range
        b"\x89\x0e",  # mov [rsi], ecx
        b"\x41\x8b\x08",  # mov ecx, [r8]: hole
        b"\x41\x89\x08",  # mov [r8], ecx
        b"\x41\x89\x09",  # mov [r9], ecx: protected
        b"\x41\x8b\x0a",  # mov ecx, [r10]: no such page
        b"\x41\x89\x0a",  # mov [r10], ecx
        b"\x0f\x0b",  # ud2
        b"\xcd\x80",  # int 0x80
        b"\x41\xff\xe2",  # jmp r10: fetch from no such page
    ):
        for twice in (False, True):
            _flags_behind_add(bench, code, twice)


def _flags_behind_add(bench: Bench, code: bytes, twice: bool) -> None:
    guest = bench.guest()
    guest.long_mode()
    engine = guest.engine
    engine.map_exit(IO, PAGE_SIZE)
    engine.protect(DATA, PAGE_SIZE, Access.READ)
    regs = engine.regs
    regs.rsi, regs.r8, regs.r9, regs.r10 = IO, IO + PAGE_SIZE, DATA, 0x7F_0000_0000
    a = guest.assembler()
    a.add("ebx", "edx")
    if twice:
        a.add("eax", "edx")
    a.raw(code)
    a.cpuid()
    guest.load(a)
    for x, y in ((0, 0), (0xFFFFFFFF, 1), (0x7FFFFFFF, 1), (5, 0xFFFFFFF0)):
        regs.rip, regs.rax, regs.rbx, regs.rdx, regs.rsp = CODE, x, 0x1234 if twice else x, y, STACK
        engine.rflags = RFLAGS_FIXED
        reason = engine.run(100)
        wanted = RFLAGS_FIXED | _add(x, y, 0, 32)
        at_handler = isinstance(reason, api.Hlt) and regs.rip < CODE
        if at_handler:
            has_error_code = regs.rip == guest.handler(Vector.PF)
            flags = guest.frame(4)[3 if has_error_code else 2] & ~RFLAGS_RF
        else:
            flags = engine.rflags
        if reason.fault_like or bench.counts or not isinstance(reason, api.PortIn | api.PortOut):
            assert flags == wanted, (code.hex(), twice, hex(x), hex(y), hex(flags), hex(wanted), describe(reason))
        engine.abandon()


@case(Need.MACHINE_CODE)
def flags_are_kept_over_exits(bench: Bench) -> None:
    """What the hypervisor sets is what the guest pushes; what the guest computed before an exit is there behind it."""
    guest = bench.guest()
    guest.long_mode()
    engine = guest.engine
    a = guest.assembler()
    a.pushfq()
    a.pop("rdx")
    a.cpuid()
    a.pushfq()
    a.pop("rdx")
    a.cpuid()
    guest.load(a)
    for flags in (0, 0x8D5, 0x401, 0xCC4, 0x211, 0x40000, 0x200AD5, 0x4084):
        for _ in range(2):
            engine.regs.rip = CODE
            engine.rflags = RFLAGS_FIXED | flags
            assert engine.rflags == RFLAGS_FIXED | flags
            for _ in range(2):
                assert isinstance(engine.run(1000), bench.marker)
                assert engine.regs.rdx == engine.rflags == RFLAGS_FIXED | flags, hex(engine.regs.rdx)
                engine.skip(2)


@case(Need.MACHINE_CODE, Need.COUNTS)
def flags_are_kept_over_slices(bench: Bench) -> None:
    """The same when the budget ends between the instruction that sets flags and the one that uses them."""
    guest = bench.guest()
    guest.long_mode()
    engine = guest.engine
    a = guest.assembler()
    a.mov("eax", 0x80000000)
    a.std()
    a.add("eax", "eax")
    a.adc("ebx", 0)
    a.pushfq()
    a.pop("rdx")
    a.vmmcall()
    guest.load(a)
    engine.regs.rbx = 0xFFFFFFFF
    for _ in range(6):
        assert isinstance(engine.run(1), api.Interrupted)
    assert isinstance(engine.run(1), api.Hypercall)
    assert engine.regs.rbx == 0
    assert engine.regs.rdx == RFLAGS_FIXED | 0x455 == engine.rflags
