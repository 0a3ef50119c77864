"""The kernel's vocabulary for models (docs/design/checker-kernel.md)."""

from vtlkit.checker.hosted.kernel import FULL, Kernel, Processor, Sleeper, SpinLock, Srcu, Variable

__all__ = ["FULL", "Kernel", "Processor", "Sleeper", "SpinLock", "Srcu", "Variable"]
