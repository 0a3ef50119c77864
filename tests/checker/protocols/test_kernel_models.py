"""Models of the kernel's code: lengths, names, sizes."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import check
from vtlkit.checker.protocols import catalogue, find
from vtlkit.checker.result import Verdict


def test_the_lengths_at_spins_sizes_are_spins() -> None:
    """Six and nine steps without the second look, with one and two wakers; six under TSO without the barriers."""
    block = find("kvm_block")
    for variant, model, wakers, steps in (
        ("no-recheck", "sc", 1, 6),
        ("no-recheck", "sc", 2, 9),
        ("no-barrier", "tso", 1, 6),
    ):
        found = check(block.variant(variant).build(model, {"wakers": wakers}), model).counterexample
        assert found is not None
        assert (len(found.steps), found.shortest) == (steps, True)


def test_every_model_says_of_what_it_is_a_model() -> None:
    for name, protocol in catalogue().items():
        if name.startswith("kernel."):
            assert protocol.abstracts
        elif name.startswith("review."):
            assert not protocol.abstracts


@pytest.mark.parametrize("sizes", [{"wakers": 0}, {"wakers": 17}])
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wakers is between 1 and 16"):
        find("kernel.block").build("sc", sizes)


def test_all_barriers_at_once() -> None:
    """Variants differ: what a variant leaves out is left out in its program alone."""
    posted = find("kernel.posted-inhibit")
    counts = {}
    for name in ("no-wake", "merged", "unblock"):
        variant = posted.variant(name)
        result = check(variant.build("sc", posted.sizes), "sc")
        counts[name] = result.states
    again = check(posted.build("sc", posted.sizes), "sc")
    assert again.verdict is Verdict.PROVED
    assert len({again.states, *counts.values()}) == 4
