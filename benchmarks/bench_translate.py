"""A million translations over page tables of garbage, every fiftieth checked against an independent walk; and what the
hypercall about the caller's own VTL costs where the hypervisor answers it and where user space does."""

from __future__ import annotations

import time
from functools import partial
from typing import Final
from unittest.mock import patch

from tests.unit.kvm.translate_rig import TranslateRig
from tests.unit.vmm.vsm import vsm_rig
from tests.unit.vmm.vsm.translate_rig import READ, WRITE, ask, context, tables
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig
from vtlkit.cli.measure import Case, Figure, seconds_per_operation
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.status import HvStatus
from vtlkit.vmm.vsm.partition import Partition

TRANSLATIONS: Final = 1_000_000
EACH: Final = 4_000
"""Translations over one set of tables."""
CHECK_EACH: Final = 50
LIMIT_SECONDS: Final = 120.0
HYPERCALLS: Final = 500


def translate_garbage() -> float:
    """Seconds, the making of the tables and the checks included."""
    begin = time.perf_counter()
    for seed in range(TRANSLATIONS // EACH):
        TranslateRig(seed).run(EACH, check_each=CHECK_EACH)
    return time.perf_counter() - begin


def translate_own(in_hypervisor: bool) -> float:
    """Seconds of a HvCallTranslateVirtualAddress of a VTL about itself, entry and exit included."""
    with patch.object(vsm_rig, "Partition", partial(Partition, translate_in_hypervisor=in_hypervisor)):
        rig = VsmRig({(0, 0): _asks})
    return seconds_per_operation(rig.run, HYPERCALLS)


def _asks(guest: Guest) -> Script:
    tables(guest.rig)
    context(guest.rig.partition.vps[0].vcpus[0])
    answer = yield from ask(guest, READ | WRITE, vtl=0)
    assert answer.status == HvStatus.SUCCESS
    # The parameters stay where they are.
    for _ in range(HYPERCALLS):
        assert (yield ops.Vmmcall()) == HvStatus.SUCCESS
    yield from guest.end()


def cases() -> list[Case | Figure]:
    own = Case("translate-own", partial(translate_own, True), "answered in user space", partial(translate_own, False))
    return [Figure("translate-garbage", translate_garbage, "s", LIMIT_SECONDS), own]
