"""Every protocol of the registry holds at its default size under each of its models; variants are as expected."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import check
from vtlkit.checker.protocols import KnownBad, Protocol, catalogue
from vtlkit.checker.result import Verdict
from vtlkit.testing.checking import assert_variant

PROTOCOLS = [protocol for protocol in catalogue().values() if not protocol.promises_nothing]
PROVED = [pytest.param(each, model, id=f"{each.name}-{model}") for each in PROTOCOLS for model in each.models]
VARIANTS = [
    pytest.param(each, variant, id=f"{each.name}!{variant.name}") for each in PROTOCOLS for variant in each.variants
]
OPEN = frozenset(("kernel.posted-compiled", "kick.first-exit-halted", "kick.unlock-halted"))
"""The first asks which of many programs are wrong, and none is known to be; the others differ from those of guests that
run in what their guests do."""


def models_that_show(variant: KnownBad) -> list[str]:
    """The strongest under which it is found, and those under which it is right: `make prove` goes through all."""
    found = [model for model, expected in variant.expect.items() if expected is not None]
    return [model for model in variant.expect if model not in found[1:]]


@pytest.mark.parametrize(("protocol", "model"), PROVED)
def test_it_is_proved(protocol: Protocol, model: str) -> None:
    result = check(protocol.build(model, protocol.sizes), model, engine=protocol.engine)
    assert result.verdict is Verdict.PROVED, result.counterexample
    assert result.states or result.executions, "nothing came to its end"


@pytest.mark.parametrize(("protocol", "variant"), VARIANTS)
def test_a_variant_is_what_it_is_expected_to_be(protocol: Protocol, variant: KnownBad) -> None:
    for model in models_that_show(variant):
        assert_variant(protocol, variant.name, model)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_something_is_known_to_break_it(protocol: Protocol) -> None:
    assert protocol.known_bad or protocol.name in OPEN
    assert all(any(bad.expect.values()) for bad in protocol.known_bad)
    assert not any(any(change.expect.values()) for change in protocol.changes)
