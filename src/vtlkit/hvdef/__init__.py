"""The Hypervisor Top Level Functional Specification as data, in its own spelling. No behaviour.

Sizes and offsets are asserted when a module is imported. Import the submodules; this package re-exports nothing.
"""
