"""Random small programs: the models allow more the weaker they are, and the parts agree with a naive oracle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checker.litmus.rig import written
from vtlkit.checker.litmus.judge import Outcome, judge
from vtlkit.checker.litmus.lkmm import relations
from vtlkit.checker.litmus.lkmm.candidates import Candidate, candidates, combinations
from vtlkit.checker.litmus.lkmm.events import WRITES
from vtlkit.checker.litmus.lkmm.relations import Relation, common, compose, inverse, is_acyclic, of_pairs, union
from vtlkit.checker.litmus.lkmm.skeleton import Skeleton
from vtlkit.checker.litmus.lkmm.traces import all_traces
from vtlkit.checker.litmus.syntax import LitmusTest

PLACES = st.sampled_from(["x", "y"])
LOADS = st.sampled_from(["READ_ONCE(*{})", "smp_load_acquire({})", "atomic_fetch_add_relaxed(2, {})", "xchg({}, 3)"])
STORES = st.sampled_from(["WRITE_ONCE(*{}, {});", "smp_store_release({}, {});", "smp_store_mb(*{}, {});"])
FENCES = st.sampled_from(["smp_mb();", "smp_rmb();", "smp_wmb();", "smp_mb__after_atomic();", "barrier();"])


@st.composite
def threads(draw: st.DrawFn, fenced: bool = False) -> list[str]:
    """Two or three threads of up to three statements, with registers r0, r1 ..., data and control dependencies."""
    found = []
    for _ in range(draw(st.integers(2, 3))):
        lines, registers = ["int r0 = 0; int r1 = 0; int r2 = 0;"], 0
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(["load", "store", "store", "depends", "branch", "fence"]))
            place = draw(PLACES)
            if kind == "load":
                lines.append(f"r{registers} = {draw(LOADS).format(place)};")
                registers += 1
            elif kind == "fence":
                lines.append(draw(FENCES))
            else:
                value = f"r{draw(st.integers(0, 2))} + 1" if kind == "depends" else str(draw(st.integers(1, 2)))
                store = draw(STORES).format(place, value)
                lines.append(f"if (r0 == 1) {{ {store} }}" if kind == "branch" else store)
            if fenced:
                lines.append("smp_mb();")
        found.append("\n".join(lines))
    return found


def program(bodies: Sequence[str]) -> LitmusTest:
    registers = "; ".join(f"{thread}:r{number}" for thread in range(len(bodies)) for number in range(3))
    return written(*bodies, condition=f"locations [x; y; {registers}] exists (true)")


def states(bodies: Sequence[str], model: str) -> set[tuple[object, ...]]:
    found: Outcome = judge(program(bodies), model)
    assert found.states
    return set(found.states)


@given(threads())
@settings(max_examples=150, deadline=None)
def test_weaker_models_allow_more(bodies: list[str]) -> None:
    sc, tso, lkmm = (states(bodies, model) for model in ("sc", "tso", "lkmm"))
    assert sc <= tso <= lkmm
    assert sc <= states(bodies, "rc11")


@given(threads(fenced=True))
@settings(max_examples=100, deadline=None)
def test_with_fences_everywhere_all_models_are_sc(bodies: list[str]) -> None:
    sc = states(bodies, "sc")
    assert states(bodies, "lkmm") == sc
    assert states(bodies, "tso") == sc


@given(threads())
@settings(max_examples=60, deadline=None)
def test_every_coherent_candidate_is_made_once(bodies: list[str]) -> None:
    test = program(bodies)
    for skeleton in list(combinations(test, all_traces(test)))[:10]:
        made = [key(candidate) for candidate in candidates(skeleton)]
        assert len(set(made)) == len(made)
        assert set(made) == {key(candidate) for candidate in naive(skeleton)}


Key = tuple[frozenset[tuple[int, int]], frozenset[tuple[int, ...]]]


def key(candidate: Candidate) -> Key:
    return frozenset(candidate.rf.items()), frozenset(candidate.co.values())


def naive(skeleton: Skeleton) -> list[Candidate]:
    """Every rf that fits the values, and every co, if both together are coherent and atomic by definition."""
    writes = {
        at: [number for number, event in skeleton.numbered() if event.at == at and event.kind in WRITES]
        for at in skeleton.locations
    }
    reads = [(number, event) for number, event in skeleton.numbered() if skeleton.r >> number & 1]
    found = []
    orders = [[(skeleton.init[at], *order) for order in permutations(writes[at])] for at in skeleton.locations]
    for choice in product(*orders):
        co = dict(zip(skeleton.locations, choice, strict=True))
        sources = []
        for _, event in reads:
            assert event.at is not None
            empty = Candidate(skeleton, {}, co)
            sources.append([write for write in co[event.at] if empty.value(write) == event.value])
        for chosen in product(*sources):
            rf = {number: source for (number, _), source in zip(reads, chosen, strict=True)}
            if is_coherent(skeleton, rf, choice):
                found.append(Candidate(skeleton, rf, co))
    return found


def is_coherent(skeleton: Skeleton, rf: dict[int, int], orders: Sequence[Sequence[int]]) -> bool:
    size = skeleton.size
    pairs = [
        (order[first], order[second])
        for order in orders
        for first in range(len(order))
        for second in range(first + 1, len(order))
    ]
    co = of_pairs(pairs, size)
    reads_from = of_pairs([(write, read) for read, write in rf.items()], size)
    fr = compose(inverse(reads_from), co)
    torn = common(skeleton.rmw, compose(common(fr, skeleton.external), common(co, skeleton.external)))
    return not any(torn) and is_acyclic(union(common(skeleton.po, skeleton.loc), reads_from, co, fr))


SIZE = 6
RELATIONS = st.lists(st.integers(0, (1 << SIZE) - 1), min_size=SIZE, max_size=SIZE)


def pairs_of(relation: Relation) -> set[tuple[int, int]]:
    return {(row, column) for row in range(SIZE) for column in range(SIZE) if relation[row] >> column & 1}


@given(RELATIONS, RELATIONS, st.integers(0, (1 << SIZE) - 1))
def test_relations_are_sets_of_pairs(left: Relation, right: Relation, members: int) -> None:
    first, second = pairs_of(left), pairs_of(right)
    assert pairs_of(union(left, right)) == first | second
    assert pairs_of(common(left, right)) == first & second
    assert pairs_of(relations.minus(left, right)) == first - second
    assert pairs_of(inverse(left)) == {(b, a) for a, b in first}
    assert pairs_of(compose(left, right)) == {(a, c) for a, b in first for other, c in second if b == other}
    assert pairs_of(relations.from_set(members, left)) == {(a, b) for a, b in first if members >> a & 1}
    assert pairs_of(relations.to_set(left, members)) == {(a, b) for a, b in first if members >> b & 1}
    assert relations.between(members, left, members) == relations.to_set(relations.from_set(members, left), members)
    assert pairs_of(relations.identity(members, SIZE)) == {(a, a) for a in range(SIZE) if members >> a & 1}
    reached = set(first)
    for _ in range(SIZE):
        reached |= {(a, c) for a, b in reached for other, c in first if b == other}
    assert pairs_of(relations.closure(left)) == reached
    assert pairs_of(relations.star(left)) == reached | {(a, a) for a in range(SIZE)}
    assert is_acyclic(left) == (not any(a == b for a, b in reached))
