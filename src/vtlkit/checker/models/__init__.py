"""Models of the kernel's own code, in the kernel's vocabulary. Each says what it leaves out."""
