"""What a guest may write to control registers and MSRs, and what follows it: a real vCPU on the embedded CPU."""

from __future__ import annotations

import pytest

from tests.unit.kvm.embedded_rig import Machine
from vtlkit.hvdef.msrs import HV_X64_MSR_NPIEP_CONFIG
from vtlkit.kvm.kvm_run import InternalErrorExit
from vtlkit.kvm.uapi import HvFeatures, hv_cpuid_entries
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import PTE_P, PTE_W
from vtlkit.x86.registers import CR4_OSXSAVE, CR4_PKE, CR4_UMIP

CANONICAL_57 = 0x00AAAAAAAAAAAAAA
CANONICAL_48 = 0xFFFFAAAAAAAAAAAA
NEVER_CANONICAL = 0xAAAAAAAAAAAAAAAA


@pytest.mark.parametrize(
    "index", [msr.MSR_FS_BASE, msr.MSR_GS_BASE, msr.MSR_KERNEL_GS_BASE, msr.MSR_LSTAR, msr.MSR_CSTAR], ids=hex
)
def test_addresses_in_msrs_are_canonical_by_what_the_processor_supports(index: int) -> None:
    machine = Machine()
    for value, refused in ((CANONICAL_48, False), (CANONICAL_57, False), (NEVER_CANONICAL, True)):
        machine.guest.long_mode()
        regs = machine.vcpu.engine.regs
        regs.rcx, regs.rax, regs.rdx = index, value & 0xFFFFFFFF, value >> 32
        assert machine.faults(b"\x0f\x30", Vector.GP) is refused, hex(value)
        assert (machine.vcpu.get_msr(index) == value) is not refused


def test_umip_follows_registers_that_user_space_sets() -> None:
    """SMSW, SGDT and SLDT of a user fault exactly while CR4.UMIP is set, however it came to be set."""
    machine = Machine()
    for umip in (False, True, False):
        for code in (b"\x0f\x01\x23", b"\x0f\x01\x03", b"\x0f\x00\xc0"):
            machine.guest.long_mode(cpl=3)
            sregs = machine.vcpu.get_sregs()
            sregs.cr4 = (sregs.cr4 & ~CR4_UMIP) | (CR4_UMIP if umip else 0)
            machine.vcpu.set_sregs(sregs)
            machine.vcpu.engine.rflags |= 3 << 12
            machine.vcpu.engine.regs.rbx = FREE
            assert machine.faults(code, Vector.GP) is umip, code.hex()


NPIEP_CODE = {b"\x0f\x01\x03": 1, b"\x0f\x01\x0b": 2, b"\x0f\x00\x03": 4, b"\x0f\x00\x0b": 8}
"""SGDT, SIDT, SLDT and STR [rbx], and the bit that forbids each."""


@pytest.mark.tlfs("msrs.npiep")
@pytest.mark.parametrize("config", range(16))
def test_npiep_keeps_single_instructions_from_user_mode(config: int) -> None:
    """Each bit makes its instruction #GP at CPL 3; at CPL 0 all of them store what they stored before."""
    machine = Machine()
    machine.vcpu.set_cpuid2(machine.vcpu.vm.get_supported_cpuid() + hv_cpuid_entries(HvFeatures()))
    stored: dict[tuple[bytes, int], int] = {}
    for npiep in (0, config):
        assert machine.vcpu.set_msr(HV_X64_MSR_NPIEP_CONFIG, npiep)
        for code, bit in NPIEP_CODE.items():
            for cpl in (0, 3):
                machine.guest.long_mode(cpl)
                machine.vcpu.engine.rflags |= 3 << 12
                machine.vcpu.engine.regs.rbx = FREE
                machine.guest.put(FREE, 8, 0)
                refused = machine.faults(code, Vector.GP)
                assert refused is bool(cpl and npiep & bit), (code.hex(), cpl)
                if not refused:
                    value = machine.guest.read(FREE, 8)
                    assert stored.setdefault((code, cpl), value) == value
    assert any(stored.values())


def test_smsw_of_a_32_bit_register_stores_32_bits() -> None:
    machine = Machine()
    machine.guest.protected_mode()
    machine.vcpu.update_intercepts()
    engine = machine.vcpu.engine
    engine.regs.rax = 0x12345678
    machine.execute(b"\x0f\x01\xe0")
    assert engine.regs.rax == engine.cr0
    assert engine.cr0 >> 16 == 0


def test_xsave_puts_components_where_cpuid_says() -> None:
    machine = Machine()
    machine.guest.long_mode()
    machine.write_cr4(CR4_OSXSAVE | CR4_PKE)
    regs = machine.vcpu.engine.regs
    regs.rbx = FREE
    regs.rsi = 0x12345678
    # xor ecx,ecx; xor edx,edx; mov eax,203h; xsetbv; mov eax,esi; wrpkru; mov eax,203h; xsave [rbx]
    code = bytes.fromhex("31c931d2b8030200000f01d189f00f01efb8030200000fae23")
    assert not machine.faults(code, Vector.GP)
    assert machine.vcpu.engine.xcr0 == 0x203
    area = machine.vcpu.cpuid.find(0xD, 9)
    assert area is not None
    assert machine.guest.read(FREE + area.ebx, area.eax) == 0x12345678


@pytest.mark.parametrize("xcr0", [0x2, 0x7, 0x1B, 1 << 17 | 3])
def test_xcr0_takes_no_component_that_is_not_offered(xcr0: int) -> None:
    machine = Machine()
    machine.guest.long_mode()
    machine.write_cr4(CR4_OSXSAVE)
    regs = machine.vcpu.engine.regs
    regs.rcx, regs.rax, regs.rdx = 0, xcr0, 0
    assert machine.faults(b"\x0f\x01\xd1", Vector.GP)
    assert machine.vcpu.engine.xcr0 == 1


@pytest.mark.parametrize("code", ["0fc7f0", "0fc7f8", "f30fc7f8"], ids=["rdrand", "rdseed", "rdpid"])
def test_what_is_not_offered_is_undefined(code: str) -> None:
    machine = Machine()
    machine.guest.long_mode()
    assert machine.faults(bytes.fromhex(code), Vector.UD)


@pytest.mark.parametrize(
    ("code", "mnemonic"),
    [(b"\x0f\x01\x23", "smsw"), (b"\x0f\x01\x33", "lmsw"), (b"\x0f\x01\x03", "sgdt"), (b"\x0f\x00\x0b", "str")],
)
def test_an_operand_in_memory_mapped_io_is_refused_in_words(code: bytes, mnemonic: str) -> None:
    machine = Machine()
    machine.guest.long_mode()
    machine.write_cr4(CR4_UMIP)
    gpa = RAM_SIZE + 0x1000
    machine.guest.map_page(FREE, gpa | PTE_P | PTE_W)
    machine.guest.write(CODE, code)
    machine.vcpu.engine.regs.rip = CODE
    machine.vcpu.engine.regs.rbx = FREE + 8
    found = []
    machine.host.spawn(lambda: found.append(machine.vcpu.run()), "vcpu")
    machine.host.run()
    assert isinstance(found[0], InternalErrorExit)
    assert mnemonic in found[0].message
    assert f"{gpa + 8:#x}" in found[0].message
    assert machine.vcpu.engine.regs.rip == CODE
