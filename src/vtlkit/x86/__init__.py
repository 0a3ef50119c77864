"""x86 as facts and pure functions: registers, descriptors, MSRs, CPUID bits, APIC registers and the page walk.

Nothing here keeps state, blocks or knows a hypervisor. Import the submodules; this package re-exports nothing.
"""
