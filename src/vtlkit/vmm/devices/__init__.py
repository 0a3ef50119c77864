"""The PC's devices as QEMU's pc machine has them: one per file, on the buses of `bus`, driven by `vtlkit.host.api`."""
