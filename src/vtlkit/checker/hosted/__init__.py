"""Tasks over the host API as programs to check (docs/design/checker.md)."""

from vtlkit.checker.hosted.host import CheckHost
from vtlkit.checker.hosted.program import HostedProgram
from vtlkit.checker.program import Again

__all__ = ["Again", "CheckHost", "HostedProgram"]
