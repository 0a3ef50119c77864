"""The compiler's freedom: each form of a plain access is found where it matters, and changes nothing where not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vtlkit.checker.check import MODELS, check
from vtlkit.checker.compiler import IN_PLACE, RACING, Load, Site, Store, compilations
from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.kernel import Kernel
from vtlkit.checker.result import ProblemKind, Verdict
from vtlkit.host.api import Host


def kinds(build: Callable[[Host], None]) -> list[ProblemKind | None]:
    """What is found under each model."""
    found = [check(HostedProgram(build, model), model) for model in MODELS]
    assert all(each.counterexample is not None or each.verdict is Verdict.PROVED for each in found)
    return [None if each.counterexample is None else each.counterexample.kind for each in found]


def publication(form: str | None, *, read: str | None = None) -> Callable[[Host], None]:
    """Data, a barrier of the processor but none of the compiler's in front of it, a flag."""

    def build(host: Host) -> None:
        kernel = Kernel(host)
        data, flag = kernel.word("data"), kernel.word("flag")

        def sender() -> None:
            store = Store(data, 0x10001, form, torn=1)
            store.here("moved down")
            kernel.smp_wmb()
            flag.write_once(1)
            store.at("moved down")

        def receiver() -> None:
            load = Load(data, read)
            load.at("moved up")
            there = flag.load_acquire()
            if there:
                value = load.value()
                assert value == 0x10001

        host.spawn(sender, "sender")
        host.spawn(receiver, "receiver")

    return build


@pytest.mark.parametrize("form", [None, IN_PLACE, "torn"])
def test_forms_that_keep_the_store_before_the_barrier_are_right(form: str | None) -> None:
    assert kinds(publication(form)) == [None] * 3


def test_a_store_that_is_moved_over_the_other_is_found_under_every_model() -> None:
    assert kinds(publication("moved down")) == [ProblemKind.ASSERTION] * 3


def test_a_load_that_is_made_earlier_is_found_under_every_model() -> None:
    assert kinds(publication(None, read=IN_PLACE)) == [None] * 3
    assert kinds(publication(None, read="moved up")) == [ProblemKind.ASSERTION] * 3


def test_ordered_plain_accesses_do_not_race_and_others_do() -> None:
    assert kinds(publication(RACING, read=RACING)) == [None] * 3

    def build(host: Host) -> None:
        kernel = Kernel(host)
        data = kernel.word("data")
        host.spawn(lambda: Store(data, 1, RACING).here(), "one")

        def other() -> None:
            data.read_once()

        host.spawn(other, "other")

    assert kinds(build) == [ProblemKind.DATA_RACE] * 3


def test_a_torn_store_shows_its_half() -> None:
    def build(host: Host, form: str) -> None:
        kernel = Kernel(host)
        data = kernel.word("data", 0xFFFFFFFF)

        def reader() -> None:
            value = data.read_once()
            assert value in (0xFFFFFFFF, 3), f"{value:x}"

        host.spawn(lambda: Store(data, 3, form, torn=0xFFFF0003).here(), "writer")
        host.spawn(reader, "reader")

    assert kinds(lambda host: build(host, IN_PLACE)) == [None] * 3
    assert kinds(lambda host: build(host, "torn")) == [ProblemKind.ASSERTION] * 3


def test_a_repeated_load_sees_two_values() -> None:
    def build(host: Host, form: str | None) -> None:
        kernel = Kernel(host)
        pointer = kernel.word("pointer", 1)

        def user() -> None:
            load = Load(pointer, form)
            there = load.value()
            if there:
                used = load.used_again("repeated")
                assert used, "checked, then loaded again"

        host.spawn(user, "user")
        host.spawn(lambda: pointer.write_once(0), "writer")

    assert kinds(lambda host: build(host, None)) == [None] * 3
    assert kinds(lambda host: build(host, IN_PLACE)) == [None] * 3
    assert kinds(lambda host: build(host, "repeated")) == [ProblemKind.ASSERTION] * 3


def test_a_fused_load_misses_what_has_been_ordered_before_it() -> None:
    def build(host: Host, form: str | None) -> None:
        kernel = Kernel(host)
        flag, done = kernel.word("flag"), kernel.word("done")

        def looker() -> None:
            first = flag.read_once()
            told = done.load_acquire()
            load = Load(flag, form)
            load.fused("fused", first)
            second = load.value()
            assert second or not told, "told that the flag is set, and does not see it"

        def setter() -> None:
            flag.write_once(1)
            done.store_release(1)

        host.spawn(looker, "looker")
        host.spawn(setter, "setter")

    assert kinds(lambda host: build(host, None)) == [None] * 3
    assert kinds(lambda host: build(host, "fused")) == [ProblemKind.ASSERTION] * 3


def test_every_site_has_every_form_in_some_compilation() -> None:
    sites = (Site("a", "", ("moved up", "torn")), Site("b", ""), Site("c", "", ("fused",)))
    every = list(compilations(sites))
    assert len(every) == 3 * 1 * 2
    assert {(name, form) for each in every for name, form in each.items()} == {
        ("a", IN_PLACE),
        ("a", "moved up"),
        ("a", "torn"),
        ("b", IN_PLACE),
        ("c", IN_PLACE),
        ("c", "fused"),
    }
