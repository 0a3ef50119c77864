"""The real-time host: `ThreadHost`, one operating system thread per task. See docs/design/host.md."""

from vtlkit.host.threads.host import ThreadHost
from vtlkit.host.threads.task import TaskKilled

__all__ = ["TaskKilled", "ThreadHost"]
