"""The guest images that come with vtlkit: PVH ELF64 files, built from guests/ in the source tree.

They are package data, read from where the package is installed; nothing here compiles or unpacks them.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

_SUFFIX = ".elf"


def _directory() -> Path:
    directory = resources.files(__name__)
    assert isinstance(directory, Path), "vtlkit is installed unpacked, as its other package data requires"
    return directory


def names() -> tuple[str, ...]:
    """Names of the images, sorted: what `path` accepts."""
    return tuple(sorted(entry.name.removesuffix(_SUFFIX) for entry in _directory().glob("*" + _SUFFIX)))


def path(name: str) -> Path:
    """The file of the image `name`. Raises `KeyError` for a name that is not in `names()`."""
    if name not in names():
        raise KeyError(f"no guest image {name!r}: there are {', '.join(names())}")
    return _directory() / (name + _SUFFIX)
