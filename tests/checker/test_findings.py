"""The pages of docs/findings say what checks say, and their sentences follow from verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtlkit.checker.compiler import compilations
from vtlkit.checker.findings import Case, Finding, Page, findings
from vtlkit.checker.findings.__main__ import main
from vtlkit.checker.findings.pages import GUARANTEES, PAGES
from vtlkit.checker.findings.render import page, paragraphs, verdicts
from vtlkit.checker.models.posted import BARRIERS, SITES
from vtlkit.checker.protocols import find

DOCUMENTS = Path(__file__).parents[2] / "docs" / "findings"


@pytest.mark.parametrize("of", PAGES, ids=lambda each: each.name)
def test_a_page_says_what_the_checks_say_at_small_sizes(of: Page) -> None:
    committed = verdicts((DOCUMENTS / f"{of.name}.md").read_text())
    found = findings(of.cases, slow=False)
    assert found
    for case, by_model in found.items():
        assert committed[case.text] == [by_model[model].verdict for model in ("sc", "tso", "rc11")]


def test_every_row_of_every_page_is_there() -> None:
    for of in PAGES:
        committed = verdicts((DOCUMENTS / f"{of.name}.md").read_text())
        assert set(committed) == {case.text for case in of.cases}
    index = verdicts((DOCUMENTS / "README.md").read_text())
    assert set(index) == {case.text for case in GUARANTEES}
    assert all(set(row) == {"holds"} for row in index.values())


def test_every_command_names_what_there_is() -> None:
    for case in [*GUARANTEES, *(case for of in PAGES for case in of.cases)]:
        protocol = find(case.protocol)
        if case.variant:
            protocol.variant(case.variant)
        assert set(dict(case.sizes)) <= set(protocol.sizes)
        assert set(case.models) <= set(protocol.models)


# --- sentences follow from verdicts -----------------------------------------------------------------------------------


def pretended(of: Page, broken: dict[str, str]) -> str:
    """The answer if just the variants named were broken, under rc11, with that kind of problem."""
    found = {
        case: {model: Finding(broken.get(case.variant, "") if model == "rc11" else "", 7) for model in case.models}
        for case in of.cases
    }
    return " ".join(paragraphs(of.answer(found)))


def named(name: str) -> Page:
    return next(of for of in PAGES if of.name == name)


def test_the_answer_about_barriers_follows() -> None:
    of = named("barrier")
    assert "Not the smp_wmb" in pretended(of, {"no-wake-mb": "lost wake-up"})
    needed = pretended(of, {"no-request-wmb": "lost wake-up", "no-wake-mb": "lost wake-up"})
    assert "Among others the smp_wmb of __kvm_make_request: without it broken under rc11" in needed
    assert f"Nothing here depends on {BARRIERS['set-srcu']}" in needed
    assert "as posted is broken under rc11" in pretended(of, {"": "deadlock"})
    assert "neither does" not in pretended(of, {"no-wmb": "deadlock", "no-wake-mb": "deadlock"})


def test_the_answer_about_marks_follows() -> None:
    of = named("once")
    assert "No mark is needed for the promise" in pretended(of, {})
    assert f"0 of {len(SITES)}" not in pretended(of, {})
    torn = pretended(of, {"suspend.waiting_on-torn": "assertion", "plain-set.inhibit": "data race"})
    assert "- suspend.waiting_on, torn, under rc11" in torn
    assert f"1 of {len(SITES)} are needed all the same" in torn
    assert "No mark is needed" not in torn


def test_the_answer_about_merging_follows() -> None:
    of = named("merge")
    assert pretended(of, {}).startswith("Yes.")
    assert pretended(of, {"merged": "deadlock"}).startswith("No: with one word the promise is broken under rc11.")
    assert "needs WRITE_ONCE" in pretended(of, {"merged-torn": "deadlock"})
    assert "Nothing is lost" in pretended(of, {})
    safer = pretended(of, {"no-release-wmb": "deadlock"})
    assert f"the two words rely on {BARRIERS['release-wmb']}, without which they are broken under rc11" in safer
    assert "Nothing is lost" not in safer


def test_the_answer_about_kicks_follows() -> None:
    of = named("kick")
    assert pretended(of, {}).startswith("No kick is lost")
    lost = pretended(of, {"first-exit-return": "deadlock", "unlock": "assertion"})
    assert "(deadlock under rc11)" in lost
    assert "Cleared by the kicker before up_write, a guest can run between kick and resume (under rc11)" in lost
    assert "Cleared by the first exit, a guest can run" not in lost


def test_the_answer_about_the_request_follows() -> None:
    of = named("request")
    assert pretended(of, {}).startswith("Nothing:")
    broken = pretended(of, {"unblock": "lost wake-up"})
    assert "With KVM_REQ_UNBLOCK the model is broken under rc11." in broken
    assert "With KVM_REQ_UNBLOCK the shipped code is broken under rc11." in broken
    assert "the wake-up, without which" in pretended(of, {"no-wake": "lost wake-up"})


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_page_without_a_counterexample_has_no_table_of_one() -> None:
    case = Case("small", "kernel.block")
    of = Page("x", "Title?", "Question?", [case], lambda _found: ["Answer."], [case])
    text = page(of, findings([case], slow=False))
    assert "## Counterexample" not in text
    assert verdicts(text) == {"small": ["holds"] * 3}
    bad = Case("bad", "kernel.block", "no-recheck")
    shown = page(
        Page("x", "Title?", "Question?", [bad], lambda _found: ["Answer."], [bad]), findings([bad], slow=False)
    )
    assert "lost wake-up in 5 steps" in shown
    assert "vtlkit check kernel.block --variant no-recheck" in shown


@pytest.mark.parametrize("words", [[], ["one", "two"], ["/nowhere/at/all"], ["--help"]])
def test_a_command_that_cannot_be_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_executions_that_wait_are_told_apart() -> None:
    of = named("kick")
    found = {of.cases[0]: {"rc11": Finding("", 50, None, 1111)}}
    assert "| holds (50 executions, 1,111 that wait) |" in page(of, found)


def test_all_ways_to_compile_are_gone_through() -> None:
    every = list(compilations(SITES))
    assert (
        len({tuple(each.items()) for each in every})
        == len(every)
        == find("kernel.posted-compiled").sizes["compilation"]
    )
    assert all(set(each) == {site.name for site in SITES} for each in every)
