"""Lengths and operands of instructions that exited, by iced-x86.

Almost every exiting instruction is its bare opcode; those are recognised without the decoder, which is loaded only when
a prefixed or operand-bearing instruction exits.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Final

_PLAIN: Final = {
    b"\x0f\xa2": 2,  # CPUID
    b"\x0f\x32": 2,  # RDMSR
    b"\x0f\x30": 2,  # WRMSR
    b"\x0f\x31": 2,  # RDTSC
    b"\x0f\x33": 2,  # RDPMC
    b"\x0f\x05": 2,  # SYSCALL
    b"\x0f\x34": 2,  # SYSENTER
    b"\xf3\x90": 2,  # PAUSE
}
MAX_LENGTH: Final = 15


@cache
def _iced() -> Any:
    import iced_x86

    return iced_x86


class Decoded:
    """What the hypervisor needs of one instruction."""

    __slots__ = ("gpr", "length", "mnemonic", "register")

    def __init__(self, length: int, mnemonic: str, register: int, gpr: int) -> None:
        self.length = length
        self.mnemonic = mnemonic
        self.register = register
        """CR number, or 16 + DR number; -1 if there is none."""
        self.gpr = gpr
        """Number of the general register operand; -1 if there is none."""


def length(code: bytes, bits: int) -> int:
    """Length in bytes of the instruction that `code` starts with; 0 if there is none."""
    plain = _PLAIN.get(code[:2])
    if plain is not None:
        return plain
    if code[:1] == b"\xf4":
        return 1
    if code[:3] in (b"\x0f\x01\xd9", b"\x0f\x01\xc1", b"\x0f\x01\xf9"):  # VMMCALL, VMCALL, RDTSCP
        return 3
    iced = _iced()
    instruction = iced.Decoder(bits, code).decode()
    return 0 if instruction.is_invalid else int(instruction.len)


_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_REP: Final = b"\xf2\xf3"
_STRING_IO: Final = range(0x6C, 0x70)


def string_io(code: bytes, bits: int) -> tuple[bool, bool]:
    """Of an instruction that accesses a port: whether it is INS or OUTS, and whether it has a repeat prefix."""
    rep = False
    for byte in code:
        if byte in _PREFIXES:
            rep = rep or byte in _REP
        elif bits != 64 or byte & 0xF0 != 0x40:
            return byte in _STRING_IO, rep and byte in _STRING_IO
    return False, False


@lru_cache(maxsize=4096)
def decode(code: bytes, bits: int) -> Decoded | None:
    """Decode one instruction in full; None if `code` starts with no valid one.

    Remembered by the bytes, those behind the instruction too: in a loop they are the same each time.
    """
    iced = _iced()
    instruction = iced.Decoder(bits, code).decode()
    if instruction.is_invalid:
        return None
    names = _mnemonics()
    register, gpr = -1, -1
    for number in range(instruction.op_count):
        if instruction.op_kind(number) != iced.OpKind.REGISTER:
            continue
        operand = instruction.op_register(number)
        if iced.RegisterExt.is_cr(operand):
            register = iced.RegisterExt.number(operand)
        elif iced.RegisterExt.is_dr(operand):
            register = 16 + iced.RegisterExt.number(operand)
        elif iced.RegisterExt.is_gpr(operand):
            gpr = iced.RegisterExt.number(operand)
    return Decoded(int(instruction.len), names[instruction.mnemonic], register, gpr)


@cache
def _mnemonics() -> dict[int, str]:
    mnemonic = _iced().Mnemonic
    return {getattr(mnemonic, name): name.lower() for name in dir(mnemonic) if name.isupper()}
