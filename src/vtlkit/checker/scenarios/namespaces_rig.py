"""Two or more APIC namespaces with the same processors in each, in either form, for scenarios and tests."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from vtlkit.checker.scenarios.rig import RAM_SIZE, Factory, make_ready, run_tasks
from vtlkit.engine.api import RamBlock
from vtlkit.engine.scripted import Guest, Handler
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.caps import Cap
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.namespaces import ApicNamespace
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vm import Vm

GROUP_BITS: Final = 4


class Form(enum.Enum):
    """How a machine has several APIC namespaces."""

    VMS = "vms"
    """A `Vm` for each, over the same RAM."""
    GROUPS = "groups"
    """One `Vm` with APIC ID groups."""


class Namespaces:
    """`programs[n][p]` runs on processor p in namespace n; every vCPU is runnable, its local APIC software-enabled.

    With `irqchip` each `Vm` has interrupt controllers.
    """

    def __init__(
        self,
        host: RunnableHost,
        form: Form,
        programs: Sequence[Sequence[Guest]],
        *,
        handlers: Mapping[int, Handler] | None = None,
        irqchip: bool = False,
        group_bits: int = GROUP_BITS,
    ) -> None:
        self.host = host
        self.form = form
        self.ram = RamBlock(RAM_SIZE)
        engines = Factory([program for processors in programs for program in processors], handlers or {})
        count = len(programs)
        self.vms: list[Vm] = [Vm(host, engines, f"vm{n}") for n in range(count if form is Form.VMS else 1)]
        for vm in self.vms:
            if irqchip:
                vm.create_irqchip()
            vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, self.ram))
        if form is Form.GROUPS:
            self.vms[0].enable_cap(Cap.APIC_ID_GROUPS, group_bits)
        self.vcpus: list[list[Vcpu]] = [
            [self._create(namespace, processor) for processor in range(len(processors))]
            for namespace, processors in enumerate(programs)
        ]

    def _create(self, namespace: int, processor: int) -> Vcpu:
        vm = self.vm(namespace)
        vcpu = vm.create_vcpu(vm.namespaces.vcpu_id(self.group(namespace), processor))
        make_ready(vcpu)
        return vcpu

    def vm(self, namespace: int) -> Vm:
        """The VM in which a namespace is."""
        return self.vms[namespace if self.form is Form.VMS else 0]

    def group(self, namespace: int) -> int:
        """Which of its VM's groups it is."""
        return namespace if self.form is Form.GROUPS else 0

    def namespace(self, namespace: int) -> ApicNamespace:
        return self.vm(namespace).namespace(self.group(namespace))

    def sibling(self, vcpu: Vcpu, namespace: int) -> Vcpu | None:
        """The same processor in another namespace, as each form looks it up."""
        if self.form is Form.GROUPS:
            return self.vms[0].sibling(vcpu, namespace)
        return self.vms[namespace].get_vcpu_by_id(vcpu.vcpu_id)

    def run(self, *functions: Callable[[], object]) -> None:
        """Run these as tasks until all are done."""
        run_tasks(self.host, *functions)
