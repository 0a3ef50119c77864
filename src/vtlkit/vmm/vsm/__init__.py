"""Virtual Secure Mode: all VTL policy, over the hypervisor's user API (TLFS, "Virtual Secure Mode")."""
