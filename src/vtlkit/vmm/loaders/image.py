"""Boot images: read once, recognised, checked, and put into guest memory as often as the machine is reset.

Promise: `open_image` and `BootImage.load` raise `LoadError` for whatever is wrong with files, options or memory size,
and nothing else; after a `LoadError` from `load` guest memory is as it was. Only RAM outside the reserved areas is
written. A `BootImage` is immutable.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vtlkit.vmm.loaders import elf, multiboot, pvh
from vtlkit.vmm.loaders.entry import GDT, BootState, Loaded, long_mode, protected_mode
from vtlkit.vmm.loaders.errors import LoadError
from vtlkit.vmm.loaders.memory import GuestMemory
from vtlkit.vmm.loaders.placement import (
    PAGE_SIZE,
    BootData,
    Piece,
    check_pieces,
    place_boot_data,
    place_initrd,
    write_pieces,
)
from vtlkit.x86.registers import Regs

COMMAND_LINE_LIMIT: Final = 4096
_FORMATS: Final = "multiboot (kvm-unit-tests' .flat files), PVH or static ELF64 images are taken"
_BZIMAGE_BOOT_FLAG: Final = (0x1FE, b"\x55\xaa")
_BZIMAGE_MAGIC: Final = (0x202, b"HdrS")
_REACH: Final = 1 << 32
"""What 32-bit code, and the identity map of the plain ELF64 start, can address."""
_STACK_SIZE: Final = 0x4000
_TABLE_ENTRIES: Final = 512
_LARGE_PAGE_SHIFT: Final = 21
_TABLE_FLAGS: Final = 0x23
"""Present, writable, accessed."""
_LARGE_PAGE_FLAGS: Final = 0xE3
"""Present, writable, accessed, dirty, 2 MiB."""


class Protocol(enum.Enum):
    """How an image wants to be started."""

    MULTIBOOT = "multiboot"
    PVH = "PVH"
    ELF64 = "ELF64"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What goes with the image. `rsdp_gpa` is where the ACPI tables' root is, 0 if there is none."""

    append: str = ""
    initrd: Path | None = None
    rsdp_gpa: int = 0


@dataclass(frozen=True, slots=True)
class BootImage:
    """An image with its initrd and command line, ready to be loaded any number of times."""

    name: str
    protocol: Protocol
    entry: int
    pieces: tuple[Piece, ...]
    command_line: bytes
    initrd: bytes | None
    initrd_name: bytes
    rsdp_gpa: int

    def load(self, memory: GuestMemory) -> BootState:
        """Write everything into `memory` and say how the boot processor starts."""
        try:
            return self._load(memory)
        except LoadError as error:
            raise LoadError(f"image {self.name}: {error}") from None

    def _load(self, memory: GuestMemory) -> BootState:
        check_pieces(self.pieces, memory.size)
        loaded = [Loaded(piece.what, piece.gpa, piece.end) for piece in self.pieces]
        modules = []
        if self.initrd is not None:
            high = self.protocol is not Protocol.MULTIBOOT
            start = place_initrd(len(self.initrd), memory.size, loaded, high=high)
            modules.append((start, start + len(self.initrd), self.initrd_name))
            loaded.append(Loaded("initrd", start, start + len(self.initrd)))
        size = len(self._boot_data(0, memory.size, modules)[0].data)
        base = place_boot_data(size, memory.size, loaded)
        boot, state = self._boot_data(base, memory.size, modules)
        loaded.append(Loaded("boot data", base, base + size))
        write_pieces(memory, self.pieces)
        if self.initrd:
            memory.write(modules[0][0], self.initrd)
        memory.write(base, bytes(boot.data))
        ordered = tuple(sorted(loaded, key=lambda item: item.start))
        return BootState(state.regs, state.sregs, self.name, self.protocol.value, self.entry, ordered)

    def _boot_data(
        self, base: int, memory_size: int, modules: list[tuple[int, int, bytes]]
    ) -> tuple[BootData, BootState]:
        """The loader's own data for address `base`, and the start state that points into it."""
        boot = BootData(base)
        line = self.command_line
        if self.protocol is Protocol.MULTIBOOT:
            info = multiboot.build_info(boot, memory_size, line, modules)
            regs = Regs(rax=multiboot.BOOTLOADER_MAGIC, rbx=info, rip=self.entry)
            sregs = protected_mode(boot.put(GDT))
        elif self.protocol is Protocol.PVH:
            info = pvh.build_start_info(boot, memory_size, line, modules, self.rsdp_gpa)
            regs = Regs(rbx=info, rip=self.entry)
            sregs = protected_mode(boot.put(GDT))
        else:
            cr3 = _identity_map(boot)
            # The stack looks as after a CALL whose return address is 0, so that the entry point may be a C function.
            stack_top = boot.put(bytes(_STACK_SIZE), PAGE_SIZE) + _STACK_SIZE
            info = pvh.build_start_info(boot, memory_size, line, modules, self.rsdp_gpa)
            regs = Regs(rdi=info, rsi=info, rsp=stack_top - 8, rip=self.entry)
            sregs = long_mode(boot.put(GDT), cr3)
        return boot, BootState(regs, sregs, self.name, self.protocol.value, self.entry, ())


def _identity_map(boot: BootData) -> int:
    """Page tables that map the first 4 GiB onto themselves with 2 MiB pages; returns CR3."""
    directories = []
    for gigabyte in range(4):
        first = gigabyte * _TABLE_ENTRIES
        entries = (index << _LARGE_PAGE_SHIFT | _LARGE_PAGE_FLAGS for index in range(first, first + _TABLE_ENTRIES))
        directories.append(boot.put(struct.pack(f"<{_TABLE_ENTRIES}Q", *entries), PAGE_SIZE))
    pointers = struct.pack("<4Q", *(directory | _TABLE_FLAGS for directory in directories))
    pointer_table = boot.put(pointers.ljust(PAGE_SIZE, b"\0"), PAGE_SIZE)
    return boot.put((pointer_table | _TABLE_FLAGS).to_bytes(8, "little").ljust(PAGE_SIZE, b"\0"), PAGE_SIZE)


def sniff(data: bytes) -> Protocol:
    """How `data` wants to be started. LoadError if it is no image that can be."""
    return _recognise(data)[0]


def _recognise(data: bytes) -> tuple[Protocol, list[Piece], int]:
    """Protocol, pieces and entry point."""
    header = multiboot.find_header(data)
    if header is not None and header.addresses is not None:
        multiboot.check_header(header)
        pieces, entry = multiboot.pieces_from_addresses(data, header)
        return Protocol.MULTIBOOT, pieces, entry
    if not data.startswith(elf.ELF_MAGIC):
        raise _not_an_image(data, header is not None)
    image = elf.parse(data)
    pieces = _elf_pieces(data, image)
    phys32 = elf.phys32_entry(data, image) if image.bits == 64 else None
    if phys32 is not None:
        return Protocol.PVH, pieces, _checked_entry(phys32, pieces)
    physical_entry = image.physical_entry()
    if physical_entry is None:
        raise LoadError(f"bad ELF file: entry point {image.entry:#x} is in no loaded segment; mend its linker script")
    if header is not None:
        multiboot.check_header(header)
        multiboot.check_elf(image)
        return Protocol.MULTIBOOT, pieces, _checked_entry(physical_entry, pieces)
    if image.bits == 32:
        raise LoadError(
            f"32-bit ELF file without a multiboot header: {_FORMATS}; add the header or build it for x86-64"
        )
    if image.machine != elf.EM_X86_64:
        raise LoadError("64-bit ELF file for 32-bit x86: build it for x86-64")
    return Protocol.ELF64, pieces, _checked_entry(physical_entry, pieces)


def _not_an_image(data: bytes, has_header: bool) -> LoadError:
    if has_header:
        return LoadError("multiboot image that is no ELF file and has no address fields: set flag 16 in its header")
    if all(data[offset : offset + len(mark)] == mark for offset, mark in (_BZIMAGE_BOOT_FLAG, _BZIMAGE_MAGIC)):
        return LoadError("looks like a Linux bzImage: not supported yet; give the vmlinux that it was made from")
    return LoadError(f"not a boot image: {_FORMATS}")


def _elf_pieces(data: bytes, image: elf.ElfImage) -> list[Piece]:
    view = memoryview(data)
    return [
        Piece(
            f"segment {segment.number}",
            segment.paddr,
            view[segment.offset : segment.offset + segment.filesz],
            segment.memsz,
        )
        for segment in image.loadable()
    ]


def _checked_entry(entry: int, pieces: list[Piece]) -> int:
    if not any(piece.gpa <= entry < piece.end for piece in pieces):
        raise LoadError(f"bad ELF file: entry point {entry:#x} is in no loaded segment; mend its linker script")
    if entry >= _REACH:
        raise LoadError(f"entry point {entry:#x} is above 4 GiB, where nothing is mapped at the start: link it lower")
    return entry


def _read_file(path: Path, what: str) -> bytes:
    try:
        is_directory = path.is_dir()
        if path.is_file():
            return path.read_bytes()
        # Only for its errors: a pipe or device is not read, as that would block or never end.
        path.stat()
    except FileNotFoundError:
        raise LoadError(f"{what} {path} does not exist: check the path") from None
    except PermissionError:
        raise LoadError(f"{what} {path} cannot be read: permission denied") from None
    except OSError as error:
        raise LoadError(f"{what} {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise LoadError(f"{what} {str(path)!r} is no path: {error}") from None
    kind = "a directory" if is_directory else "no regular file"
    raise LoadError(f"{what} {path} is {kind}: give a file")


def _command_line(name: str, append: str) -> bytes:
    try:
        line = " ".join(part for part in (name, append) if part).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise LoadError(f"the command line cannot be encoded: {error.reason}; mend --append") from None
    if b"\0" in line:
        raise LoadError("the command line holds a NUL character: take it out of --append")
    if len(line) >= COMMAND_LINE_LIMIT:
        raise LoadError(
            f"the command line has {len(line)} bytes and {COMMAND_LINE_LIMIT - 1} are the limit: shorten it"
        )
    return line


def open_image(path: str | Path, options: LoadOptions | None = None) -> BootImage:
    """Read and check an image and what goes with it. LoadError if it cannot be started on any machine.

    The multiboot command line begins with the image's file name, as boot loaders do it; the other protocols' do not.
    """
    options = options or LoadOptions()
    path = Path(path)
    data = _read_file(path, "image")
    if not data:
        raise LoadError(f"image {path} is empty: {_FORMATS}")
    try:
        protocol, pieces, entry = _recognise(data)
    except LoadError as error:
        raise LoadError(f"image {path}: {error}") from None
    initrd = None if options.initrd is None else _read_file(Path(options.initrd), "initrd")
    name = path.name if protocol is Protocol.MULTIBOOT else ""
    return BootImage(
        name=path.name,
        protocol=protocol,
        entry=entry,
        pieces=tuple(pieces),
        command_line=_command_line(name, options.append),
        initrd=initrd,
        initrd_name=b"" if options.initrd is None else Path(options.initrd).name.encode("utf-8", "surrogateescape"),
        rsdp_gpa=options.rsdp_gpa,
    )


def load(path: str | Path, memory: GuestMemory, options: LoadOptions | None = None) -> BootState:
    """Read an image and write it into `memory`."""
    return open_image(path, options).load(memory)
