"""The hypervisor: vCPUs, memory, interrupts, hypercall ABI. It knows no VTL mapping. `uapi` is its only door."""
