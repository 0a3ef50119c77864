"""Rival designs of one mechanism, for tests that go for each of them."""

from __future__ import annotations

from functools import partial

import pytest

from tests.unit.vmm.vsm import vsm_rig
from vtlkit.kvm.uapi import FlushInhibitDesign, Kvm


@pytest.fixture(params=FlushInhibitDesign)
def tlb_flush_inhibit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FlushInhibitDesign:
    """Every rig of the test holds flushes up in this design, and the test runs once in each."""
    design = FlushInhibitDesign(request.param)
    monkeypatch.setattr(vsm_rig, "Kvm", partial(Kvm, tlb_flush_inhibit=design))
    return design
