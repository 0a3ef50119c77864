"""The deterministic host: `Simulator`. See docs/design/host.md."""

from vtlkit.host.sim.choices import Choice, ChoiceSource, ReplayDivergence
from vtlkit.host.sim.report import Deadlock
from vtlkit.host.sim.simulator import Simulator, Token

__all__ = ["Choice", "ChoiceSource", "Deadlock", "ReplayDivergence", "Simulator", "Token"]
