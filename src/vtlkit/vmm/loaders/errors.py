"""What a loader raises: a bad image or a bad combination of image and machine, never a mistake of the program."""

from __future__ import annotations


class LoadError(ValueError):
    """An image cannot be started. The message is one line: what is wrong, and what to do."""
