"""The Linux-kernel memory model: which candidate executions can happen.

From the model's published definition (tools/memory-model/linux-kernel.cat, .bell and lock.cat of Linux 6.1). It keeps
the names, with underscores. Coherence and atomicity hold of every candidate by the way these are made.
"""

from __future__ import annotations

from functools import cached_property

from vtlkit.checker.litmus.lkmm.candidates import Candidate
from vtlkit.checker.litmus.lkmm.plain import Plain
from vtlkit.checker.litmus.lkmm.relations import (
    Relation,
    between,
    common,
    compose,
    empty,
    from_set,
    inverse,
    is_acyclic,
    is_irreflexive,
    of_pairs,
    optional,
    star,
    to_set,
    union,
)


class Lkmm:
    """One candidate under the model. `broken` names the axiom that it breaks, "" for an execution that can happen."""

    AXIOMS: tuple[str, ...] = ("happens_before", "propagation", "rcu", "plain_coherence")

    def __init__(self, candidate: Candidate) -> None:
        skeleton = self.skeleton = candidate.skeleton
        self.size = skeleton.size
        self.po = skeleton.po
        self.marked = skeleton.marked
        self.rf = of_pairs(((write, read) for read, write in candidate.rf.items()), self.size)
        self.co = empty(self.size)
        for order in candidate.co.values():
            later = 0
            for write in reversed(order):
                self.co[write] = later
                later |= 1 << write

    @property
    def broken(self) -> str:
        """The first axiom that does not hold, or ""."""
        for axiom in self.AXIOMS:
            if not getattr(self, axiom):
                return axiom
        return ""

    @cached_property
    def happens_before(self) -> bool:
        return is_acyclic(self.hb)

    @cached_property
    def propagation(self) -> bool:
        return is_acyclic(self.pb)

    @cached_property
    def rcu(self) -> bool:
        return is_irreflexive(self.rb)

    @cached_property
    def fr(self) -> Relation:
        return compose(inverse(self.rf), self.co)

    @cached_property
    def rfe(self) -> Relation:
        return common(self.rf, self.skeleton.external)

    @cached_property
    def rfi(self) -> Relation:
        return common(self.rf, self.skeleton.internal)

    @cached_property
    def overwrite(self) -> Relation:
        return union(self.co, self.fr)

    # Fences.

    @cached_property
    def po_unlock_lock_po(self) -> Relation:
        skeleton = self.skeleton
        if not skeleton.ul:
            return empty(self.size)
        handed_over = between(skeleton.ul, union(self.po, self.rf), skeleton.lkr)
        return compose(self.po, handed_over, self.po)

    @cached_property
    def r4rmb(self) -> int:
        return self.skeleton.r & ~self.skeleton.noreturn

    @cached_property
    def rmb(self) -> Relation:
        return between(self.r4rmb, self.skeleton.fencerel("rmb"), self.r4rmb)

    @cached_property
    def wmb(self) -> Relation:
        return between(self.skeleton.w, self.skeleton.fencerel("wmb"), self.skeleton.w)

    @cached_property
    def mb(self) -> Relation:
        skeleton = self.skeleton
        m, po = skeleton.m, self.po
        found = between(m, skeleton.fencerel("mb"), m)
        if skeleton.fence_set("before-atomic"):
            before = between(m, skeleton.fencerel("before-atomic"), skeleton.atomic)
            found = union(found, to_set(compose(before, optional(po)), m))
        if skeleton.fence_set("after-atomic"):
            after = between(skeleton.atomic, skeleton.fencerel("after-atomic"), m)
            found = union(found, from_set(m, compose(optional(po), after)))
        if skeleton.fence_set("after-spinlock"):
            after = between(skeleton.lkw, skeleton.fencerel("after-spinlock"), m)
            found = union(found, from_set(m, compose(optional(po), after)))
        if skeleton.fence_set("after-unlock-lock"):
            handed_over = between(skeleton.ul, union(self.co, po), skeleton.lkw)
            after = to_set(skeleton.fencerel("after-unlock-lock"), m)
            found = union(found, from_set(m, compose(po, handed_over, after)))
        return found

    @cached_property
    def gp(self) -> Relation:
        grace = self.skeleton.fence_set("sync-rcu", "sync-srcu")
        return compose(to_set(self.po, grace), optional(self.po)) if grace else empty(self.size)

    @cached_property
    def strong_fence_without_rcu(self) -> Relation:
        return union(self.mb, self.gp)

    @cached_property
    def nonrw_fence(self) -> Relation:
        return union(self.strong_fence_without_rcu, self.skeleton.po_rel, self.skeleton.acq_po)

    @cached_property
    def fence_without_rcu(self) -> Relation:
        return union(self.nonrw_fence, self.wmb, self.rmb)

    # Preserved program order, propagation, happens-before.

    @cached_property
    def dep(self) -> Relation:
        return union(self.skeleton.addr, self.skeleton.data)

    @cached_property
    def rwdep(self) -> Relation:
        return to_set(union(self.dep, self.skeleton.ctrl), self.skeleton.w)

    @cached_property
    def to_w(self) -> Relation:
        skeleton = self.skeleton
        by_address = compose(to_set(skeleton.addr, skeleton.plain), self.wmb)
        return union(self.rwdep, common(self.overwrite, skeleton.internal), by_address)

    @cached_property
    def to_r(self) -> Relation:
        return union(self.skeleton.addr, compose(to_set(self.dep, self.marked), self.rfi))

    @cached_property
    def ppo(self) -> Relation:
        locks = common(self.po_unlock_lock_po, self.skeleton.internal)
        return union(self.to_r, self.to_w, self.fence_without_rcu, locks)

    def a_cumul(self, relation: Relation) -> Relation:
        """The relation, also behind what somebody else has read of it."""
        return compose(optional(to_set(self.rfe, self.marked)), relation)

    @cached_property
    def cumul_fence(self) -> Relation:
        cumulative = self.a_cumul(union(self.strong_fence_without_rcu, self.skeleton.po_rel))
        return between(self.marked, union(cumulative, self.wmb, self.po_unlock_lock_po), self.marked)

    @cached_property
    def cumul_fences(self) -> Relation:
        return star(self.cumul_fence)

    @cached_property
    def prop(self) -> Relation:
        overwritten = optional(common(self.overwrite, self.skeleton.external))
        reached = compose(from_set(self.marked, overwritten), self.cumul_fences)
        return to_set(compose(to_set(reached, self.marked), optional(self.rfe)), self.marked)

    @cached_property
    def hb(self) -> Relation:
        inside = [row & ~(1 << number) for number, row in enumerate(common(self.prop, self.skeleton.internal))]
        return between(self.marked, union(self.ppo, self.rfe, inside), self.marked)

    @cached_property
    def hb_star(self) -> Relation:
        return star(self.hb)

    @cached_property
    def pb(self) -> Relation:
        return to_set(compose(self.prop, self.strong_fence_without_rcu, self.hb_star), self.marked)

    @cached_property
    def pb_star(self) -> Relation:
        return star(self.pb)

    # RCU.

    @cached_property
    def rcu_order(self) -> Relation:
        """Grace periods and no more critical sections, joined by rcu_link: the least solution of its equation."""
        skeleton = self.skeleton
        sections, loc = skeleton.sections, skeleton.loc
        gp = [skeleton.fence_set("sync-rcu") & 1 << number for number in range(self.size)]
        srcu_gp = [skeleton.fence_set("sync-srcu") & 1 << number for number in range(self.size)]
        rscsi, srcu_rscsi = inverse(sections.rcu), inverse(sections.srcu)
        link = compose(optional(self.po), self.hb_star, self.pb_star, self.prop, self.po)
        found = union(gp, srcu_gp)
        while True:
            inner = union(link, compose(link, found, link))
            more = union(
                found,
                compose(gp, inner, rscsi),
                compose(rscsi, inner, gp),
                common(compose(srcu_gp, inner, srcu_rscsi), loc),
                common(compose(srcu_rscsi, inner, srcu_gp), loc),
                compose(found, link, found),
            )
            if more == found:
                return found
            found = more

    @cached_property
    def rcu_fence(self) -> Relation:
        if not self.skeleton.fence_set("sync-rcu", "sync-srcu"):
            return empty(self.size)
        return compose(self.po, self.rcu_order, optional(self.po))

    @cached_property
    def fence(self) -> Relation:
        return union(self.fence_without_rcu, self.rcu_fence)

    @cached_property
    def strong_fence(self) -> Relation:
        return union(self.strong_fence_without_rcu, self.rcu_fence)

    @cached_property
    def rb(self) -> Relation:
        return to_set(compose(self.prop, self.rcu_fence, self.hb_star, self.pb_star), self.marked)

    @property
    def plain_coherence(self) -> bool:
        """Whether what is ordered between plain accesses agrees with rf, co and fr."""
        return not self.skeleton.plain or self.plain.coherent

    @cached_property
    def plain(self) -> Plain:
        """What is said of plain accesses."""
        return Plain(self)

    @property
    def flags(self) -> set[str]:
        """What a reader has to know of an execution that can happen: races, and RCU sections that do not fit."""
        found = self.skeleton.sections.flags | self.skeleton.lock_flags
        return found | self.plain.flags if self.skeleton.plain else found
