"""python -m vtlkit.checker.findings DIR: check every question anew and write its page there. Takes a few minutes."""

from __future__ import annotations

import sys
from pathlib import Path

from vtlkit.checker.findings import Case, findings
from vtlkit.checker.findings.pages import GUARANTEES, PAGES
from vtlkit.checker.findings.render import index, page

_USAGE = "usage: python -m vtlkit.checker.findings DIR: the directory for the pages, which must be there"


def main(words: list[str]) -> int:
    """Write the pages. 2: that is no directory."""
    if len(words) != 1 or words[0].startswith("-") or not Path(words[0]).is_dir():
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    directory = Path(words[0])
    answered = []
    for of in PAGES:
        found = findings(of.cases, slow=True, told=_tell)
        (directory / f"{of.name}.md").write_text(page(of, found))
        answered.append((of, found))
    (directory / "README.md").write_text(index(answered, findings(GUARANTEES, slow=True, told=_tell)))
    return 0


def _tell(case: Case) -> None:
    sys.stderr.write(f"{case.command}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
