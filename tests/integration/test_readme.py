"""The README shows what a run really prints."""

from __future__ import annotations

from tests.integration import cli_rig

README = cli_rig.SOURCE.parent / "README.md"


def transcript() -> list[str]:
    """The block that shows the demonstration guest."""
    blocks = README.read_text().split("```\n")[1::2]
    return next(block for block in blocks if block.startswith("[VTL0 VP0]")).splitlines()


def test_the_transcript_is_of_the_demo() -> None:
    done = cli_rig.run("demo", "--cpus", "2")
    assert done.status == 0
    printed = iter([*done.console.decode().splitlines(), *done.error_lines])
    shown = transcript()
    assert len(shown) > 10
    for line in shown:
        # Shortened, but in the order of the run: the search goes on where it stopped.
        assert line in printed, line
