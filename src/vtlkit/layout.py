"""Little-endian packed structures and bit fields: a thin, typed layer over `struct`.

A structure is a class whose annotations name its fields in memory order, with no implicit padding:

    class HV_X64_SEGMENT_REGISTER(Struct, size=16, offsets={"Selector": 12}):
        Base: u64 = 0
        Limit: u32 = 0
        Selector: u16 = 0
        Attributes: u16 = 0

Its size, and every offset that it states, are checked when the class is made: a wrong table fails at import. Instances
are plain slotted objects. Packing raises `struct.error` for a value that does not fit its field, a short buffer, and a
byte string or tuple of the wrong length; nothing wraps or is padded.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Self, TypeAlias, dataclass_transform, get_type_hints

ReadBuffer: TypeAlias = bytes | bytearray | memoryview
WriteBuffer: TypeAlias = bytearray | memoryview


class Scalar(NamedTuple):
    """One integer; `code` is its `struct` format character."""

    code: str


class Bytes(NamedTuple):
    """A byte string of exactly `length` bytes; annotate as `Annotated[bytes, Bytes(n)]`."""

    length: int


class Array(NamedTuple):
    """`length` integers; annotate as `Annotated[tuple[int, ...], Array("Q", n)]`."""

    code: str
    length: int


u8: TypeAlias = Annotated[int, Scalar("B")]
u16: TypeAlias = Annotated[int, Scalar("H")]
u32: TypeAlias = Annotated[int, Scalar("I")]
u64: TypeAlias = Annotated[int, Scalar("Q")]
i32: TypeAlias = Annotated[int, Scalar("i")]
i64: TypeAlias = Annotated[int, Scalar("q")]


def _exactly(value: Any, length: int, name: str) -> Any:
    if len(value) != length:
        raise struct.error(f"{name} has {len(value)} elements, its field has {length}")
    return value


class _Generated:
    """Source text of a structure's methods: `struct` wants flat arguments, and a loop would cost every call."""

    def __init__(self) -> None:
        self.format = "<"
        self.names: dict[str, Any] = {"_exactly": _exactly}
        self.pack: list[str] = []
        self.unpack: list[str] = []
        self.init: list[str] = []
        self.load: list[str] = []

    def add(self, owner: str, name: str, hint: Any, default: Any) -> int:
        """Append one field; returns its width in bytes."""
        kind = hint if isinstance(hint, type) else next(iter(getattr(hint, "__metadata__", ())), None)
        value = f"self.{name}"
        self.names[f"_d_{name}"] = default
        self.init.append(value + f" = {name}")
        if isinstance(kind, Scalar):
            code = kind.code
            self.pack.append(value)
            self.unpack.append(value)
        elif isinstance(kind, Bytes):
            code = f"{kind.length}s"
            self.pack.append(f"_exactly({value}, {kind.length}, '{name}')")
            self.unpack.append(value)
        elif isinstance(kind, Array):
            code = f"{kind.length}{kind.code}"
            items = [f"_{name}_{i}" for i in range(kind.length)]
            self.pack.append(f"*_exactly({value}, {kind.length}, '{name}')")
            self.unpack += items
            self.load.append(f"{value} = ({', '.join(items)},)")
        elif isinstance(kind, type) and issubclass(kind, Struct):
            code = f"{kind.SIZE}s"
            self.names[f"_t_{name}"] = kind
            self.init[-1] = f"{value} = _d_{name}.copy() if {name} is _d_{name} else {name}"
            self.pack.append(f"{value}.pack()")
            self.unpack.append(f"_{name}")
            self.load.append(f"{value} = _t_{name}.unpack_from(_{name})")
        else:
            raise TypeError(f"{owner}.{name}: {hint!r} is not a field type")
        self.format += code
        return struct.calcsize("<" + code)

    def methods(self, fields: list[str]) -> dict[str, Any]:
        codec = struct.Struct(self.format)
        self.names.update(_pack=codec.pack, _pack_into=codec.pack_into, _unpack=codec.unpack_from)
        arguments = "".join(f", {f}=_d_{f}" for f in fields)
        packed = ", ".join(self.pack)
        source = (
            f"def __init__(self{arguments}):\n  {'; '.join(self.init)}\n"
            f"def pack(self):\n  return _pack({packed})\n"
            f"def pack_into(self, buffer, offset=0):\n  _pack_into(buffer, offset, {packed})\n"
            f"def unpack_from(cls, buffer, offset=0):\n  self = cls.__new__(cls)\n"
            f"  {', '.join(self.unpack)}, = _unpack(buffer, offset)\n"
            f"  {'; '.join(self.load) or 'pass'}\n  return self\n"
        )
        exec(source, self.names)
        methods = {name: self.names[name] for name in ("__init__", "pack", "pack_into")}
        return methods | {"unpack_from": classmethod(self.names["unpack_from"])}


@dataclass_transform(eq_default=True)
class _StructMeta(type):
    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        size: int | None = None,
        offsets: Mapping[str, int] | None = None,
    ) -> _StructMeta:
        fields = [f for f, hint in namespace.get("__annotations__", {}).items() if "ClassVar" not in str(hint)]
        if size is None:
            return super().__new__(mcs, name, bases, namespace)
        missing = [f for f in fields if f not in namespace]
        if missing:
            raise TypeError(f"{name}: fields without a default: {', '.join(missing)}")
        defaults = {f: namespace.pop(f) for f in fields}
        cls = super().__new__(mcs, name, bases, {**namespace, "__slots__": tuple(fields)})
        hints = get_type_hints(cls, include_extras=True)
        generated = _Generated()
        table: dict[str, int] = {}
        end = 0
        for field in fields:
            table[field] = end
            end += generated.add(name, field, hints[field], defaults[field])
        if end != size:
            raise TypeError(f"{name} has {end} bytes, its definition says {size}")
        for field, offset in (offsets or {}).items():
            if table[field] != offset:
                raise TypeError(f"{name}.{field} is at {table[field]:#x}, its definition says {offset:#x}")
        for method, function in generated.methods(fields).items():
            setattr(cls, method, function)
        cls.SIZE = size  # type: ignore[attr-defined]
        cls.OFFSETS = table  # type: ignore[attr-defined]
        return cls


class Struct(metaclass=_StructMeta):
    """Base of all packed structures. Equality compares the fields; instances are mutable and unhashable."""

    __slots__ = ()
    SIZE: ClassVar[int]
    """Bytes."""
    OFFSETS: ClassVar[Mapping[str, int]]
    """Field name to offset in bytes."""

    def pack(self) -> bytes:
        raise NotImplementedError

    def pack_into(self, buffer: WriteBuffer, offset: int = 0) -> None:
        """Write the `SIZE` bytes at `offset`; `struct.error` if they do not fit."""
        raise NotImplementedError

    @classmethod
    def unpack_from(cls, buffer: ReadBuffer, offset: int = 0) -> Self:
        """Read from `offset`; bytes beyond the structure are ignored, `struct.error` if there are too few."""
        raise NotImplementedError

    @classmethod
    def unpack(cls, data: ReadBuffer) -> Self:
        """Read from exactly `SIZE` bytes."""
        if len(data) != cls.SIZE:
            raise struct.error(f"{cls.__name__} has {cls.SIZE} bytes, not {len(data)}")
        return cls.unpack_from(data)

    def copy(self) -> Self:
        """A copy that shares no nested structure."""
        return type(self).unpack_from(self.pack())

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, f) == getattr(other, f) for f in self.OFFSETS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = []
        for field in self.OFFSETS:
            value = getattr(self, field)
            parts.append(f"{field}={value:#x}" if isinstance(value, int) else f"{field}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


class Bits:
    """A bit field of an integer word: `width` bits from bit `lo`."""

    __slots__ = ("lo", "mask", "max", "width")

    def __init__(self, lo: int, width: int = 1) -> None:
        if lo < 0 or width < 1:
            raise ValueError(f"no bit field has {width} bits from bit {lo}")
        self.lo: Final = lo
        self.width: Final = width
        self.max: Final = (1 << width) - 1
        """Largest value of the field."""
        self.mask: Final = self.max << lo
        """The field's bits in place."""

    def get(self, word: int) -> int:
        return (word >> self.lo) & self.max

    def put(self, word: int, value: int) -> int:
        """`word` with the field replaced; ValueError if `value` does not fit."""
        return (word & ~self.mask) | self.make(value)

    def make(self, value: int) -> int:
        """The field alone, in place; ValueError if `value` does not fit."""
        if not 0 <= value <= self.max:
            raise ValueError(f"{value:#x} does not fit a field of {self.width} bits")
        return value << self.lo

    def __repr__(self) -> str:
        return f"Bits({self.lo}, {self.width})"
