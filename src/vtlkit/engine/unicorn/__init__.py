"""The embedded engine over Unicorn 2.1 (QEMU 5.0.1's translator as a library)."""

from vtlkit.engine.unicorn.factory import UnicornFactory

__all__ = ["UnicornFactory"]
