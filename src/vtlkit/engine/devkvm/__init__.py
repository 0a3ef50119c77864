"""The host's /dev/kvm as an engine."""

from vtlkit.engine.devkvm.factory import DevKvmFactory

__all__ = ["DevKvmFactory"]
