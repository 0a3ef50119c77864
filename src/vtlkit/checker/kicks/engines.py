"""Engines for these scenarios, by their names on the command line."""

from __future__ import annotations

from vtlkit.engine.api import Engine, EngineFactory
from vtlkit.engine.unicorn import UnicornFactory


class SeparateUnicorn:
    """The embedded CPU, for each processor one of its own: processors that take turns on one kick each other out for
    their turn, and would hide a lost kick. Nothing here needs the atomic operations that taking turns is for."""

    name = "unicorn"

    def __init__(self) -> None:
        self._factories: list[UnicornFactory] = []

    def create(self, vcpu_name: str) -> Engine:
        factory = UnicornFactory(counting=False)
        self._factories.append(factory)
        return factory.create(vcpu_name)

    def counts_instructions(self) -> bool:
        return False

    def close(self) -> None:
        for factory in self._factories:
            factory.close()
        self._factories.clear()


def engines(name: str) -> EngineFactory:
    """The engines of one run; who runs it closes them. `name`: kvm or unicorn.

    Raises:
        EngineError: one line: why it cannot be used here.
    """
    if name == "unicorn":
        return SeparateUnicorn()
    from vtlkit.engine.devkvm import DevKvmFactory

    return DevKvmFactory()
