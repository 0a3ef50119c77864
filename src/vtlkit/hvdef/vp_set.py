"""Sparse virtual processor sets (TLFS, HV_VP_SET): header, encoder and decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from vtlkit.layout import Struct, u64

HV_GENERIC_SET_SPARSE_4K: Final = 0
HV_GENERIC_SET_ALL: Final = 1
HV_VP_SET_BANK_SIZE: Final = 64
HV_VP_SET_MAX_BANKS: Final = 64


class HV_VP_SET(Struct, size=16):
    """The fixed part; one 64-bit word of bank contents follows per bit of `ValidBanksMask`, lowest bank first."""

    Format: u64 = 0
    ValidBanksMask: u64 = 0


def encode_vp_set(vps: Iterable[int]) -> bytes:
    """The sparse set of these VP indices (0 to 4095, ValueError beyond), banks included."""
    banks: dict[int, int] = {}
    for vp in vps:
        if not 0 <= vp < HV_VP_SET_BANK_SIZE * HV_VP_SET_MAX_BANKS:
            raise ValueError(f"no sparse VP set holds VP index {vp}")
        bank = vp // HV_VP_SET_BANK_SIZE
        banks[bank] = banks.get(bank, 0) | 1 << vp % HV_VP_SET_BANK_SIZE
    valid = sum(1 << bank for bank in banks)
    contents = b"".join(banks[bank].to_bytes(8, "little") for bank in sorted(banks))
    return HV_VP_SET(HV_GENERIC_SET_SPARSE_4K, valid).pack() + contents


def decode_sparse_banks(valid_banks_mask: int, contents: Sequence[int]) -> int:
    """The set as one integer, a bit per VP index. ValueError unless there is a word per valid bank."""
    if valid_banks_mask.bit_count() != len(contents):
        raise ValueError(f"{len(contents)} banks for the mask {valid_banks_mask:#x}")
    vps = 0
    for word in contents:
        lowest = valid_banks_mask & -valid_banks_mask
        vps |= word << HV_VP_SET_BANK_SIZE * (lowest.bit_length() - 1)
        valid_banks_mask ^= lowest
    return vps
