"""The repository's own rules hold, and each rule's checker finds what it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.tidy import repository

ROOT = Path(__file__).parents[2]
FILES = [path for path in repository.files(ROOT) if path.is_file()]
TEXTS = [(path.relative_to(ROOT).as_posix(), text) for path in FILES if (text := repository.text_of(path)) is not None]
RULES_THEMSELVES = ("tests/tidy/test_repository.py", "tests/tidy/repository.py")
PAGES = [name for name, _ in TEXTS if name.endswith(".md")]

Rule = Callable[[str], Iterator[str]]


def complaints(rule: Rule, texts: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name}: {complaint}" for name, text in texts for complaint in rule(text)]


def expect_none(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "rule",
    [repository.machine_paths, repository.tracker_numbers, repository.missing_newline],
    ids=lambda rule: rule.__name__,
)
def test_every_text_file_follows(rule: Rule) -> None:
    expect_none(complaints(rule, [(name, text) for name, text in TEXTS if name not in RULES_THEMSELVES]))


def test_sources_are_finished() -> None:
    expect_none(complaints(repository.unfinished_marks, [item for item in TEXTS if item[0].startswith("src/")]))


def test_modules_follow_the_rules() -> None:
    found = []
    for name, text in TEXTS:
        if name.startswith("src/") and name.endswith(".py"):
            may_print = name.startswith("src/vtlkit/cli/")
            found += [f"{name}: {complaint}" for complaint in repository.module_rules(text, may_print)]
    expect_none(found)


def test_no_file_is_large() -> None:
    sizes = [(path.relative_to(ROOT).as_posix(), path.stat().st_size) for path in FILES]
    expect_none([f"{name}: {text}" for name, size in sizes for text in repository.too_large(name, size)])


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", "docs/ARCHITECTURE.md", "docs/LIMITS.md"])
def test_the_page_is_there(name: str) -> None:
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_exist(page: str) -> None:
    makefiles = {ROOT / "Makefile", (ROOT / page).parent / "Makefile"}
    targets = {target for path in makefiles if path.is_file() for target in repository.make_targets(path.read_text())}
    assert repository.make_commands((ROOT / page).read_text()) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_local_links_of_a_page_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    missing = [link for link in repository.local_links(text) if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_the_readme_names_commands() -> None:
    assert {"demo", "test"} <= repository.make_commands((ROOT / "README.md").read_text())


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (repository.machine_paths, "see /" + "work/main/x"),
        (repository.machine_paths, 'open("/' + 'tmp/src/linux/x")'),
        (repository.machine_paths, "(/" + "root/.cache)"),
        (repository.machine_paths, "at /home/someone/x"),
        (repository.tracker_numbers, "fixes #12"),
        (repository.tracker_numbers, "as issue 2 says"),
        (repository.tracker_numbers, "Issues 14 and 15"),
        (repository.unfinished_marks, "# TODO: later"),
        (repository.unfinished_marks, "x = 1  # XXX"),
        (repository.missing_newline, "text"),
        (repository.missing_newline, "text\n\n"),
    ],
)
def test_a_bad_text_is_found(rule: Rule, text: str) -> None:
    assert len(list(rule(text))) == 1


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (repository.machine_paths, "src/vtlkit/work/x and net/tmp/y and ../tmp/z, /dev/kvm"),
        (
            repository.tracker_numbers,
            'an injected #GP(0), f"{x:#06x}", "%#3x", issues of trust, configuration mechanism #1, #define, &#39;',
        ),
        (repository.unfinished_marks, "XXXL"),
        (repository.missing_newline, "text\n"),
        (repository.missing_newline, ""),
    ],
)
def test_a_good_text_is_not_reported(rule: Rule, text: str) -> None:
    assert list(rule(text)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n", "no module docstring"),
        ('"""Doc."""\nprint(1)\n', "print()"),
        ('"""Doc."""\ntry:\n    f()\nexcept:\n    g()\n', "bare except"),
        ('"""Doc."""\ntry:\n    f()\nexcept Exception:\n    pass\n', "swallowed"),
        (
            '"""Doc."""\nfor i in x:\n    try:\n        f()\n    except (OSError, BaseException):\n        continue\n',
            "swallowed",
        ),
        ('"""Doc."""\ntry:\n    f()\nexcept Exception:\n    ...\n', "swallowed"),
    ],
)
def test_a_bad_module_is_found(text: str, expected: str) -> None:
    (found,) = repository.module_rules(text, may_print=False)
    assert expected in found


def test_a_good_module_is_not_reported() -> None:
    text = (
        '"""Doc."""\ntry:\n    print(1)\nexcept KeyError:\n    pass\n'
        "except Exception:\n    raise ValueError from None\n"
    )
    assert list(repository.module_rules(text, may_print=True)) == []


def test_a_large_file_is_found() -> None:
    assert list(repository.too_large("a", repository.MAX_BYTES)) == []
    assert len(list(repository.too_large("a", repository.MAX_BYTES + 1))) == 1


def test_commands_are_read_from_code_only() -> None:
    page = "You make progress. Run `make demo`, or:\n```\nmake -s test\nmake conformance X=1\n```\nand make tea.\n"
    assert repository.make_commands(page) == {"demo", "test", "conformance"}
    assert repository.make_targets("all:\n\n.PHONY: demo test\n.PHONY: bench\n") == {"demo", "test", "bench"}


def test_local_links_leave_out_the_web_and_anchors() -> None:
    page = "[a](docs/a.md) [b](https://example.org/x) [c](#here) [d](b.md#there) `[not](a.link)`\n"
    assert repository.local_links(page) == ["docs/a.md", "b.md"]


def test_caches_are_not_the_project(tmp_path: Path) -> None:
    for name in (".git/x", ".venv/lib/y.py", "src/__pycache__/z.pyc", "src/a.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert list(repository.files(tmp_path)) == [tmp_path / "src" / "a.py"]


def test_pages_name_tests_that_are_there() -> None:
    pages = [(name, text) for name, text in TEXTS if name.endswith(".md")]
    expect_none([f"{name}: {gap}" for name, text in pages for gap in repository.missing_tests(text, ROOT)])


def test_a_named_test_that_is_not_there_is_found() -> None:
    here = "tests/tidy/test_repository.py"
    page = f"`{here}::test_sources_are_finished`, {here}, tests/tidy/none.py and {here}::test_nothing."
    assert len(repository.tests_named(page)) == 4
    found = list(repository.missing_tests(page, ROOT))
    assert found == ["names tests/tidy/none.py, which is not there", f"names {here}::test_nothing, which is not there"]
