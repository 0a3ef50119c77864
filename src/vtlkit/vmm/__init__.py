"""The user-space side: the machine, its devices and loaders, and all VTL policy. It sees KVM through `kvm.uapi`."""
