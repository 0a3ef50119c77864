"""The user-space side: the machine, its devices and loaders, and all VTL policy. It sees the hypervisor through `kvm.uapi`."""
