"""Tracing: typed events of the hypervisor, what they are written to, and what is made of them when read back."""
