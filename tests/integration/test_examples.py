"""The programs of examples/ run, and say what their readers are told they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import cli_rig

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPECTED = {
    "run_guest.py": ["[VTL0 VP0] done", "power-off: the guest powered off", "VTL switches"],
    "three_vtls.py": [
        "VTL2 VP1: intercept: VTL1 executes",
        "VTL2 VP0: audit: 6 tags attested; attempts of VTL1: 2, of VTL0: 1",
        "lines said by VTL0: 15, by VTL1: 16, by VTL2: 14",
    ],
    "poll_inactive_vtl.py": ["VTL1 has nothing to do", "VTL1's vCPU: woken, with few looks"],
    "compare_seeds.py": ["seed 1: power-off", "the same again: True", " different runs"],
}


def test_every_example_is_tested_and_listed() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    assert programs == EXPECTED.keys()
    page = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}`" in page for name in programs)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_runs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env=cli_rig.environment(),
        capture_output=True,
        text=True,
        timeout=cli_rig.PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "False" not in done.stdout
    for part in EXPECTED[name]:
        assert part in done.stdout
    if name == "compare_seeds.py":
        # How many differ is the seeds' luck; that they do is the point.
        assert int(done.stdout.splitlines()[-1].split()[0]) >= 2
