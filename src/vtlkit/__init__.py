"""vtlkit: KVM's vCPU execution core and Hyper-V Virtual Secure Mode in user-space Python."""

__version__ = "0.1.0"
