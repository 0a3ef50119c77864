"""Plain accesses under the Linux-kernel memory model: what orders them, and which of them race.

From the last part of linux-kernel.cat, whose names it keeps.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from vtlkit.checker.litmus.lkmm.relations import (
    Relation,
    between,
    common,
    compose,
    from_set,
    inverse,
    is_empty,
    minus,
    optional,
    product,
    star,
    to_set,
    union,
)

if TYPE_CHECKING:
    from vtlkit.checker.litmus.lkmm.model import Lkmm

_BARRIERS = [
    "barrier",
    "rmb",
    "wmb",
    "mb",
    "sync-rcu",
    "sync-srcu",
    "before-atomic",
    "after-atomic",
    "rcu-lock",
    "rcu-unlock",
    "srcu-lock",
    "srcu-unlock",
]


class Plain:
    """The plain accesses of one candidate that the other axioms allow."""

    def __init__(self, model: Lkmm) -> None:
        self._model = model
        self._skeleton = model.skeleton
        self._size = model.size
        self._marked = model.marked

    @property
    def coherent(self) -> bool:
        """Whether rf, co and fr go with the order of plain accesses, not against it."""
        model, race = self._model, self._pre_race
        return (
            is_empty(common(common(race, model.rf), inverse(self._rw_xbstar)))
            and is_empty(common(common(race, model.fr), inverse(self._wr_vis)))
            and is_empty(common(common(race, model.co), inverse(self._ww_vis)))
        )

    @property
    def flags(self) -> set[str]:
        """`data-race` and `mixed-accesses`, where they apply."""
        found = set()
        if self._races:
            found.add("data-race")
        if self._mixes:
            found.add("mixed-accesses")
        return found

    @cached_property
    def _bounded(self) -> tuple[Relation, Relation, Relation, Relation]:
        """w-pre-bounded, r-pre-bounded, w-post-bounded, r-post-bounded."""
        model, marked = self._model, self._marked
        addr, rmb = self._skeleton.addr, self._skeleton.fencerel("rmb")
        returning = self._skeleton.all & ~self._skeleton.noreturn
        w_pre = from_set(marked, optional(union(addr, model.fence)))
        rmb_before = between(model.r4rmb, rmb, returning)
        r_pre = from_set(marked, optional(union(addr, model.nonrw_fence, rmb_before)))
        w_post = to_set(optional(model.fence), marked)
        rmb_behind = between(returning, rmb, model.r4rmb)
        r_post = to_set(optional(union(model.nonrw_fence, rmb_behind)), marked)
        return w_pre, r_pre, w_post, r_post

    @cached_property
    def _xbstar(self) -> Relation:
        return star(union(self._model.hb, self._model.pb, self._model.rb))

    @cached_property
    def _vis(self) -> Relation:
        model, marked = self._model, self._marked
        strong = compose(to_set(model.strong_fence, marked), self._xbstar)
        end = union(strong, common(self._xbstar, self._skeleton.internal))
        return compose(to_set(compose(model.cumul_fences, optional(model.rfe)), marked), end)

    def _visible(self, pre_bounded: Relation) -> Relation:
        model = self._model
        strong = compose(model.strong_fence, self._xbstar, pre_bounded)
        return union(model.fence, strong, compose(self._bounded[2], self._vis, pre_bounded))

    @cached_property
    def _ww_vis(self) -> Relation:
        return self._visible(self._bounded[0])

    @cached_property
    def _wr_vis(self) -> Relation:
        return self._visible(self._bounded[1])

    @cached_property
    def _rw_xbstar(self) -> Relation:
        return union(self._model.fence, compose(self._bounded[3], self._xbstar, self._bounded[0]))

    @cached_property
    def _pre_race(self) -> Relation:
        skeleton, size = self._skeleton, self._size
        pairs = union(
            product(skeleton.plain, skeleton.m, size), product(skeleton.m & ~skeleton.iw, skeleton.plain, size)
        )
        return common(skeleton.external, pairs)

    @property
    def _races(self) -> bool:
        model, skeleton, size = self._model, self._skeleton, self._size
        marked, w = self._marked, skeleton.w
        nonrace = common(
            common(self._ww_vis, union(product(marked, w, size), self._rw_xbstar)),
            union(product(w, marked, size), self._wr_vis),
        )
        ww = minus(common(self._pre_race, model.co), nonrace)
        read = common(self._pre_race, compose(optional(model.co), model.rf))
        wr = minus(minus(read, self._wr_vis), inverse(self._rw_xbstar))
        rw = minus(common(self._pre_race, model.fr), self._rw_xbstar)
        return not (is_empty(ww) and is_empty(wr) and is_empty(rw))

    @property
    def _mixes(self) -> bool:
        """Plain writes and marked accesses at one location with no barrier between them."""
        skeleton, marked = self._skeleton, self._marked
        between_both = skeleton.fence_set(*_BARRIERS) | skeleton.acquire | skeleton.release
        barrier = union(
            skeleton.around(between_both),
            to_set(skeleton.po, skeleton.release),
            from_set(skeleton.acquire, skeleton.po),
        )
        close = minus(common(skeleton.po, skeleton.loc), barrier)
        written = skeleton.plain & skeleton.w
        return not is_empty(union(between(written, close, marked), between(marked, close, written)))
