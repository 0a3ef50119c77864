"""The generator, the choice sequence, and replay tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.host.sim import ReplayDivergence, Simulator, Token
from vtlkit.host.sim.choices import Choice, Choices, ReplaySource, SeededSource, decode_choices, encode_choices
from vtlkit.host.splitmix import SplitMix64

choice_lists = st.lists(
    st.builds(
        lambda label, count, share: Choice(label, count, share % count),
        st.text(max_size=8),
        st.integers(2, 1 << 300),
        st.integers(0, 1 << 300),
    ),
    max_size=40,
)


def test_splitmix64_reference_sequence() -> None:
    """The first outputs for seed 1234567 of the author's reference implementation."""
    generator = SplitMix64(1234567)
    assert [generator.next64() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.integers(0, 1 << 64), st.integers(1, 1 << 300))
def test_below_stays_below(seed: int, count: int) -> None:
    assert 0 <= SplitMix64(seed).below(count) < count


def test_below_is_even() -> None:
    generator = SplitMix64(9)
    histogram = [0] * 6
    for _ in range(6000):
        histogram[generator.below(6)] += 1
    assert all(850 < bar < 1150 for bar in histogram)


@given(choice_lists)
def test_choices_survive_the_token(choices: list[Choice]) -> None:
    assert decode_choices(encode_choices(choices)) == choices


@given(choice_lists, st.booleans(), st.integers(1, 1 << 40), st.sampled_from(["fifo", "seed"]))
def test_token_text_round_trip(choices: list[Choice], instrument: bool, slice_ns: int, scheduler: str) -> None:
    for token in (
        Token(scheduler, 7, instrument, slice_ns),
        Token(scheduler, None, instrument, slice_ns, tuple(choices)),
    ):
        assert Token.parse(str(token)) == token


@given(
    st.text(max_size=40) | st.sampled_from(["seed:", "seed:x", "seed:-1", "seed:1:AA", "seed:1,fast", "choices:seed:"])
)
def test_garbage_is_no_token(text: str) -> None:
    try:
        token = Token.parse(text)
    except ValueError:
        return
    assert Token.parse(str(token)) == token


@pytest.mark.parametrize(
    "text", ["", "seed", "seed:", "seed:1:AA", "seed:1,fast", "random:1", "choices:seed:!", "choices:x:AA"]
)
def test_known_garbage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Token.parse(text)


def test_one_way_is_no_choice() -> None:
    choices = Choices(SeededSource(0), record=True)
    assert choices.draw(1, "x") == 0
    assert choices.log == []
    with pytest.raises(ValueError, match="among 0"):
        choices.draw(0, "x")


def test_source_that_cheats_is_caught() -> None:
    class Cheat:
        def draw(self, count: int, label: str, /) -> int:
            return count

    with pytest.raises(ValueError, match="not in"):
        Choices(Cheat(), record=False).draw(2, "x")


def test_replay_checks_label_count_and_end() -> None:
    recorded = [Choice("run", 3, 2)]
    assert Choices(ReplaySource(recorded), record=False).draw(3, "run") == 2
    with pytest.raises(ReplayDivergence, match=r"choice 0 .*slice.*run"):
        ReplaySource(recorded).draw(3, "slice")
    with pytest.raises(ReplayDivergence, match=r"4 ways.*3 ways"):
        ReplaySource(recorded).draw(4, "run")
    source = ReplaySource(recorded)
    source.draw(3, "run")
    with pytest.raises(ReplayDivergence, match="ended before"):
        source.draw(3, "run")


def test_replay_token_decides_alone() -> None:
    for arguments in ({"seed": 1}, {"scheduler": "fifo"}, {"instrument": True}, {"slice_ns": 5}):
        with pytest.raises(ValueError, match="token decides"):
            Simulator(replay="seed:1", **arguments)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="no scheduler"):
        Simulator(scheduler="lottery")
    with pytest.raises(ValueError, match="negative"):
        Simulator(seed=-1)
    with pytest.raises(ValueError, match="slice"):
        Simulator(slice_ns=0)
