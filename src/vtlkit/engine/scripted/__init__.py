"""The scripted engine: guests are Python generators, for tests and for the checker."""

from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.core import Guest, Handler
from vtlkit.engine.scripted.engine import ScriptedEngine, ScriptedFactory

__all__ = ["Guest", "Handler", "ScriptedEngine", "ScriptedFactory", "ops"]
