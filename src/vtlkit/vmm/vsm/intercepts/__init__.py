"""Secure intercepts: what a higher VTL hears of a lower one (TLFS, "Secure Intercepts"; docs/design/intercepts.md).

`wishes` says which VTL wants what, `install` and `registers` are how it says so, `memory` and `instructions` are what
the hypervisor has stopped, `messages` are the bytes, and `delivery` hands them over.
"""

from vtlkit.vmm.vsm.intercepts.delivery import tell
from vtlkit.vmm.vsm.intercepts.instructions import intercepted
from vtlkit.vmm.vsm.intercepts.memory import memory_fault
from vtlkit.vmm.vsm.intercepts.messages import of_exit

__all__ = ["intercepted", "memory_fault", "of_exit", "tell"]
