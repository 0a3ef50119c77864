"""The `vtlkit` program: its commands, and how it ends.

The promise: bad input is one line on standard error and status 2, an error of vtlkit's own is a traceback and status
70, Ctrl-C is status 130, an output that cannot be written is status 74, and a reader that goes away
(`vtlkit info | head -1`) ends the program without a word.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Protocol

import typer
from typer.main import get_command

from vtlkit import __version__
from vtlkit.cli.bench import bench
from vtlkit.cli.check import check
from vtlkit.cli.info import info
from vtlkit.cli.litmus import litmus
from vtlkit.cli.run import run
from vtlkit.cli.status import BadInput, Status, complain, report_bug
from vtlkit.cli.stress import stress
from vtlkit.cli.trace import trace

_STANDARD_OUTPUT: Final = 1


class _UsageError(Protocol):
    """What typer raises for words it cannot take: the class has no public name, but its best-known heir does."""

    ctx: typer.Context | None

    def format_message(self) -> str: ...


_USAGE_ERROR: Final[Any] = typer.BadParameter.__mro__[1]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vtlkit {__version__}")
        raise typer.Exit()


def application() -> typer.Typer:
    """The commands. Plain help texts: the decorated ones take longer to draw than everything else here."""
    app = typer.Typer(
        name="vtlkit",
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )

    @app.callback()
    def vtlkit(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None:
        """Run x86-64 guests with Hyper-V's Virtual Trust Levels on an embedded CPU."""

    for command in (run, trace, info, bench, stress, litmus):
        app.command()(_telling_ctrl_c(command))
    # A protocol's sizes are options that only it knows.
    app.command(context_settings={"ignore_unknown_options": True})(_telling_ctrl_c(check))
    return app


class _Interrupted(Exception):
    """Ctrl-C outside the guest's run."""


def _telling_ctrl_c(command: Callable[..., int]) -> Callable[..., int]:
    """The command, whose KeyboardInterrupt typer would make the same as a status that the command returns."""

    @functools.wraps(command)
    def interruptible(*words: Any, **options: Any) -> int:
        try:
            return command(*words, **options)
        except KeyboardInterrupt:
            raise _Interrupted from None

    return interruptible


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is without the program's name. Returns the exit status."""
    if not _has_output():
        # Nothing may run: the next file that is opened would be taken for the guest's console.
        complain("vtlkit", "standard output is closed; redirect it to /dev/null to see nothing")
        return Status.OUTPUT_FAILED
    try:
        status = _dispatch(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_output()
        return Status.BROKEN_PIPE
    except OSError as error:
        _drop_output()
        complain("vtlkit", f"standard output: {error.strerror}")
        return Status.OUTPUT_FAILED


def _has_output() -> bool:
    try:
        os.fstat(_STANDARD_OUTPUT)
    except OSError:
        return False
    return True


def _drop_output() -> None:
    """The interpreter flushes once more as it exits, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_OUTPUT)


def _dispatch(words: list[str]) -> int:
    try:
        status = get_command(application()).main(words, prog_name="vtlkit", standalone_mode=False)
        return status if isinstance(status, int) else Status.OK
    except BadInput as error:
        complain(error.command, str(error))
        return Status.BAD_INPUT
    except _USAGE_ERROR as error:
        return _refuse_words(error)
    except (KeyboardInterrupt, _Interrupted, typer.Abort):
        complain("vtlkit", "interrupted")
        return Status.INTERRUPTED
    except SystemExit as end:
        # What typer makes of a broken pipe.
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        raise
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the last resort: nothing may end as a debug exit's status 1
        report_bug(error)
        return Status.BUG


def _refuse_words(error: _UsageError) -> int:
    """One line for a usage error; the whole help where nothing was asked for."""
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return Status.BAD_INPUT
    command = "vtlkit" if error.ctx is None else error.ctx.command_path
    # What a value should be, its complaint says itself.
    hint = "" if type(error).__name__ == "BadParameter" else f": '{command} --help' says what there is"
    complain(command, f"{message[:1].lower()}{message[1:].rstrip('.')}{hint}")
    return Status.BAD_INPUT
