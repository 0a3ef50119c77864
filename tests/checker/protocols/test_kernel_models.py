"""Models of the kernel's code, and the questions of a review: right at default size, each variant as expected."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import check
from vtlkit.checker.protocols import Protocol, catalogue, find, kernel, review, spin
from vtlkit.checker.result import Verdict
from vtlkit.testing.checking import assert_variant

PROTOCOLS = [*kernel.PROTOCOLS, *review.PROTOCOLS, *spin.PROTOCOLS]
VARIANTS = [(each, variant.name) for each in PROTOCOLS for variant in each.variants]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda each: each.name)
def test_each_is_proved_at_its_default_size(protocol: Protocol) -> None:
    for model in protocol.models:
        result = check(protocol.build(model, protocol.sizes), model, engine=protocol.engine)
        assert result.verdict is Verdict.PROVED
        assert result.counterexample is None
        assert (result.states or 0) + (result.executions or 0) + (result.blocked or 0) > 5


@pytest.mark.parametrize(("protocol", "name"), VARIANTS, ids=lambda value: getattr(value, "name", value))
def test_each_variant_is_found_to_be_what_it_is_expected_to_be(protocol: Protocol, name: str) -> None:
    assert_variant(protocol, name)


def test_known_bad_variants_break_something_and_changes_nothing() -> None:
    for protocol in PROTOCOLS:
        assert protocol.known_bad or protocol.name == "kernel.posted-compiled"
        assert all(any(bad.expect.values()) for bad in protocol.known_bad)
        assert not any(any(change.expect.values()) for change in protocol.changes)


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
