"""Boot image loaders: multiboot 1, PVH and plain ELF64 images, put into guest memory with the registers to start them.

`open_image` reads and checks the files once; `BootImage.load` writes them into memory, at every boot and reset.
Whatever is wrong with an image is a `LoadError`, which says what and what to do about it, in one line.
"""

from vtlkit.vmm.loaders.entry import BootState, Loaded, waking_vector_state
from vtlkit.vmm.loaders.errors import LoadError
from vtlkit.vmm.loaders.image import BootImage, LoadOptions, load, open_image, sniff
from vtlkit.vmm.loaders.memory import GuestMemory, memory_map, ram_ranges

__all__ = [
    "BootImage",
    "BootState",
    "GuestMemory",
    "LoadError",
    "LoadOptions",
    "Loaded",
    "load",
    "memory_map",
    "open_image",
    "ram_ranges",
    "sniff",
    "waking_vector_state",
]
