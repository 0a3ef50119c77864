"""The Hyper-V guest interface (mirrors arch/x86/kvm/hyperv.c): `vm.HvVm`, `vcpu.HvVcpu`; docs/design/hyperv.md."""
