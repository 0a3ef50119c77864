"""Many schedules of the protocols by which vCPUs wait, wake and are stopped; all executions of small programs."""

from vtlkit.checker.user import protocol as protocol
