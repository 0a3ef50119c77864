"""Models with one part missing or wrong: some shape notices each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.checker.litmus.rig import SHAPES, disagrees
from vtlkit.checker.litmus.lkmm import candidates as making
from vtlkit.checker.litmus.lkmm import plain, skeleton
from vtlkit.checker.litmus.lkmm.events import WRITES
from vtlkit.checker.litmus.lkmm.model import Lkmm
from vtlkit.checker.litmus.lkmm.relations import Relation, between, compose, empty, identity, union
from vtlkit.checker.litmus.lkmm.skeleton import Skeleton

PARTS = (
    *("rmb", "wmb", "mb", "po_unlock_lock_po", "rwdep", "to_w", "to_r", "dep", "ppo", "rfe", "rfi", "overwrite"),
    *("cumul_fence", "prop", "pb", "rb", "rcu_fence", "fr", "co", "rf"),
)
"""Relations of the model, each left empty in turn. Not `gp`: what it orders, `rcu_fence` orders too."""
SKELETON_PARTS = ["addr", "data", "ctrl", "acq_po", "po_rel"]


def without_relation(name: str) -> type[Lkmm]:
    """The model with a relation empty."""

    class Variant(Lkmm):
        pass

    setattr(Variant, name, property(lambda self: empty(self.size), lambda self, value: None))
    return Variant


def without_axiom(name: str) -> type[Lkmm]:
    class Variant(Lkmm):
        AXIOMS = tuple(axiom for axiom in Lkmm.AXIOMS if axiom != name)

    return Variant


def noticed(model: type[Lkmm]) -> bool:
    return any(disagrees(name, model) for name in SHAPES)


def test_the_model_itself_is_not_noticed() -> None:
    assert not noticed(Lkmm)
    assert not noticed(without_axiom("none of them"))


@pytest.mark.parametrize("axiom", Lkmm.AXIOMS)
def test_a_missing_axiom(axiom: str) -> None:
    assert noticed(without_axiom(axiom))


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_relation(part: str) -> None:
    assert noticed(without_relation(part))


@pytest.mark.parametrize("part", SKELETON_PARTS)
def test_a_missing_order_of_one_thread(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if part in ("addr", "data", "ctrl"):
        make = Skeleton._dependencies

        def forget(self: Skeleton) -> None:
            make(self)
            setattr(self, part, empty(self.size))

        monkeypatch.setattr(Skeleton, "_dependencies", forget)
    else:
        monkeypatch.setattr(Skeleton, part, property(lambda self: empty(self.size)))
    assert noticed(Lkmm)


@pytest.mark.parametrize(
    "fence",
    [
        "mb",
        "rmb",
        "wmb",
        "before-atomic",
        "after-atomic",
        "after-spinlock",
        "after-unlock-lock",
        "sync-rcu",
        "sync-srcu",
    ],
)
def test_a_fence_without_effect(fence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = Skeleton.fence_set
    monkeypatch.setattr(
        Skeleton, "fence_set", lambda self, *kinds: find(self, *[kind for kind in kinds if kind != fence])
    )
    assert noticed(Lkmm)


class NotCumulative(Lkmm):
    """Fences hand on nothing that their thread has read."""

    def a_cumul(self, relation: Relation) -> Relation:
        return relation


class WmbIsRelease(Lkmm):
    """Write barriers order reads before them, and hand on what these have seen."""

    @property
    def cumul_fence(self) -> Relation:
        skeleton = self.skeleton
        ordered = between(skeleton.m, skeleton.fencerel("wmb"), skeleton.w)
        return union(super().cumul_fence, self.a_cumul(ordered))


class RmbOrdersAll(Lkmm):
    """Read barriers order the reads of atomics without result, too."""

    @property
    def r4rmb(self) -> int:
        return self.skeleton.r


class BranchesOrderLoads(Lkmm):
    """A control dependency orders what it does not."""

    @property
    def to_r(self) -> Relation:
        return union(super().to_r, self.skeleton.ctrl)


class StrongOrder(Lkmm):
    """Program order is kept, whatever it is: no load buffering."""

    @property
    def ppo(self) -> Relation:
        return union(super().ppo, self.po)


class OneOverwriteTooMany(Lkmm):
    """Propagation goes on through a second write that comes later, without a strong fence."""

    @property
    def prop(self) -> Relation:
        return compose(super().prop, union(identity(self.skeleton.all, self.size), super().prop))


class SrcuIsRcu(Lkmm):
    """Grace periods of one domain wait for readers of all."""

    @property
    def rcu_order(self) -> Relation:
        before = self.skeleton.__dict__.get("loc")
        self.skeleton.__dict__["loc"] = [self.skeleton.all] * self.size
        found = super().rcu_order
        if before is None:
            del self.skeleton.__dict__["loc"]
        else:
            self.skeleton.__dict__["loc"] = before
        return found


class OneSectionMore(Lkmm):
    """A grace period orders any number of critical sections."""

    @property
    def rcu_order(self) -> Relation:
        found = super().rcu_order
        sections = [0] * self.size
        for number, row in enumerate(self.skeleton.sections.rcu):
            for other in range(self.size):
                if row >> other & 1:
                    sections[other] |= 1 << number
        link = compose(
            union(identity(self.skeleton.all, self.size), self.po), self.hb_star, self.pb_star, self.prop, self.po
        )
        return union(found, compose(found, link, sections))


WRONG: Sequence[type[Lkmm]] = (
    NotCumulative,
    WmbIsRelease,
    RmbOrdersAll,
    BranchesOrderLoads,
    StrongOrder,
    OneOverwriteTooMany,
    SrcuIsRcu,
    OneSectionMore,
)


@pytest.mark.parametrize("model", WRONG)
def test_a_wrong_relation(model: type[Lkmm]) -> None:
    assert noticed(model)


def incoherent(
    skeleton: Skeleton, numbers: Sequence[int], co: Sequence[int], place: dict[int, int]
) -> Iterator[dict[int, int]]:
    """Reads may find any write of their value."""
    found: list[dict[int, int]] = [{}]
    for number in numbers:
        event = skeleton.events[number]
        assert event is not None
        if event.kind not in WRITES:
            sources = [write for write in co if making._value(skeleton, write) == event.value]
            found = [{**before, number: source} for before in found for source in sources]
    yield from found


def torn(
    skeleton: Skeleton, numbers: Sequence[int], co: Sequence[int], place: dict[int, int]
) -> Iterator[dict[int, int]]:
    """Atomic read-modify-writes are a read and a write."""
    before, skeleton.rmw = skeleton.rmw, empty(skeleton.size)
    found = list(making_sources(skeleton, numbers, co, place))
    skeleton.rmw = before
    yield from found


making_sources = making._sources


@pytest.mark.parametrize("sources", [incoherent, torn])
def test_candidates_that_cannot_be(
    sources: Callable[..., Iterator[dict[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "_sources", sources)
    assert noticed(Lkmm)


@pytest.mark.parametrize("part", ["_pre_race", "_ww_vis", "_wr_vis", "_rw_xbstar", "_xbstar", "_vis"])
def test_a_missing_part_of_plain_accesses(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain.Plain, part, property(lambda self: empty(self._size)))
    assert noticed(Lkmm)


def test_sections_that_nobody_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton.Sections, "_close", lambda self, *rest: None)
    assert noticed(Lkmm)
