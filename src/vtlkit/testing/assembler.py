"""A few instructions of machine code at a time, for tests: mnemonics as methods over iced-x86's encoder.

    a = Assembler(64, 0x1000)
    a.mov("eax", 5)
    a.label("again")
    a.add(Mem("rbx", 8, size=4), "eax")
    a.rep.movsb()
    a.jne("again")
    a.in_("al", "dx")
    code = a.code()

Which encoding an instruction gets is looked up in iced's own tables: the shortest that takes the operands. A name that
is a Python keyword has an underscore behind it. iced-x86 is loaded with the first instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

_STRING: Final = frozenset(
    f"{name}{width}" for name in ("movs", "stos", "lods", "cmps", "scas") for width in "bwdq"
) | {f"{name}{width}" for name in ("ins", "outs") for width in "bwd"}
_SIGN: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Mem:
    """A memory operand: [base + index * scale + displacement], `size` bytes where the instruction leaves it open."""

    base: str | None = None
    displacement: int = 0
    size: int = 0
    index: str | None = None
    scale: int = 1
    segment: str | None = None


Operand = str | int | Mem
"""A register's name, a label, an immediate, or memory."""


@cache
def _iced() -> Any:
    import iced_x86

    return iced_x86


@cache
def _mnemonics() -> dict[str, list[Any]]:
    """Every encoding (as OpCodeInfo) by mnemonic in lower case."""
    iced = _iced()
    names = {value: name.lower() for name, value in vars(iced.Mnemonic).items() if name.isupper()}
    found: dict[str, list[Any]] = {}
    for name, code in vars(iced.Code).items():
        if name.isupper() and isinstance(code, int):
            info = iced.OpCodeInfo(code)
            found.setdefault(names[info.mnemonic], []).append(info)
    return found


@cache
def _register(name: str) -> int:
    value = getattr(_iced().Register, name.upper(), None)
    return value if isinstance(value, int) else 0


class Assembler:
    """Encodes for 16-, 32- or 64-bit code that will lie at offset `base` of its code segment."""

    def __init__(self, bits: int, base: int) -> None:
        self.bits = bits
        self.base = base
        self._out = bytearray()
        self._labels: dict[str, int] = {}
        self._branches: list[tuple[int, int, Any, str]] = []
        self._prefix = ""

    @property
    def here(self) -> int:
        """The address of the next instruction."""
        return self.base + len(self._out)

    def label(self, name: str) -> None:
        """Name the address of the next instruction."""
        assert name not in self._labels, name
        self._labels[name] = self.here

    def at(self, name: str) -> int:
        """The address that `label` gave a name to."""
        return self._labels[name]

    def raw(self, data: bytes) -> None:
        """Append bytes as they are."""
        self._out += data

    @property
    def rep(self) -> Assembler:
        """Prefix of the next instruction."""
        self._prefix = "rep"
        return self

    @property
    def lock(self) -> Assembler:
        """Prefix of the next instruction."""
        self._prefix = "lock"
        return self

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        mnemonic = name.rstrip("_")

        def emit(*operands: Operand) -> None:
            self._emit(mnemonic, operands)

        return emit

    def code(self) -> bytes:
        """The bytes, with every branch resolved."""
        for offset, size, instruction, label in self._branches:
            instruction.near_branch64 = self._labels[label]
            encoded = self._encode(instruction, self.base + offset)
            assert len(encoded) == size
            self._out[offset : offset + size] = encoded
        self._branches.clear()
        return bytes(self._out)

    def _encode(self, instruction: Any, address: int) -> bytes:
        encoder = _iced().Encoder(self.bits)
        encoder.encode(instruction, address)
        data: bytes = encoder.take_buffer()
        return data

    def _emit(self, mnemonic: str, operands: tuple[Operand, ...]) -> None:
        prefix, self._prefix = self._prefix, ""
        if mnemonic in _STRING:
            candidates = [getattr(_iced().Instruction, f"create_{mnemonic}")(self.bits)]
        else:
            candidates = self._candidates(mnemonic, operands)
        best: tuple[bytes, Any] | None = None
        for instruction in candidates:
            instruction.has_rep_prefix = prefix == "rep"
            instruction.has_lock_prefix = prefix == "lock"
            try:
                encoded = self._encode(instruction, self.here)
            except ValueError:
                continue  # this encoding does not take these operands; another one may
            if best is None or len(encoded) < len(best[0]):
                best = encoded, instruction
        if best is None:
            raise ValueError(f"no {self.bits}-bit encoding of {mnemonic} {operands}")
        last = operands[-1] if operands else None
        if isinstance(last, str) and not _register(last):
            self._branches.append((len(self._out), len(best[0]), best[1], last))
        self._out += best[0]

    def _candidates(self, mnemonic: str, operands: tuple[Operand, ...]) -> list[Any]:
        iced = _iced()
        found = []
        size = next((item.size for item in operands if isinstance(item, Mem)), 0)
        for info in _mnemonics()[mnemonic]:
            if info.op_count != len(operands) or not getattr(info, f"mode{self.bits}"):
                continue
            if size and iced.MemorySizeExt.size(info.memory_size) != size:
                continue
            try:
                found.append(self._create(info.code, operands))
            except ValueError:
                continue  # an immediate out of this encoding's range; another one may take it
        return found

    def _create(self, code: int, operands: tuple[Operand, ...]) -> Any:
        iced = _iced()
        kinds: list[str] = []
        values: list[Any] = []
        for operand in operands:
            if isinstance(operand, Mem):
                kinds.append("mem")
                values.append(self._memory(operand))
            elif isinstance(operand, int):
                kinds.append("i32")
                values.append(operand - 2 * _SIGN if operand >= _SIGN else operand)
            elif register := _register(operand):
                kinds.append("reg")
                values.append(register)
            else:
                branch = iced.Instruction.create_branch(code, self.here)
                if branch.op0_kind != getattr(iced.OpKind, f"NEAR_BRANCH{self.bits}"):
                    raise ValueError("another operand size would cut the instruction pointer")
                return branch
        if kinds == ["reg", "i32"]:
            kinds[1] = "i64"
        elif "i32" in kinds:
            # The 32-bit forms take a signed number; 0x8000_0000 and above are meant as bit patterns.
            values = [v - (1 << 32) if k == "i32" and v >= 1 << 31 else v for k, v in zip(kinds, values, strict=True)]
        name = "_".join(["create", *kinds])
        return getattr(iced.Instruction, name)(code, *values)

    def _memory(self, operand: Mem) -> Any:
        iced = _iced()
        register = iced.Register
        size = self.bits // 8 if operand.base is None else (1 if operand.displacement else 0)
        return iced.MemoryOperand(
            _register(operand.base) if operand.base else register.NONE,
            _register(operand.index) if operand.index else register.NONE,
            operand.scale,
            operand.displacement,
            size,
            False,
            _register(operand.segment) if operand.segment else register.NONE,
        )
