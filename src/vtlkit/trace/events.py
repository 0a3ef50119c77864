"""What a trace consists of: one class per tracepoint, instances of which are values.

Counterpart: arch/x86/kvm/trace.h and include/trace/events/kvm.h. Where KVM has a tracepoint, the event has its name,
its fields and its text; `kvm_vcpu_block`, `kvm_vcpu_kick`, `kvm_vcpu_signal`, `kvm_make_request`, `kvm_inj_nmi`,
`kvm_memory_change`, `vtl_switch` and `check_step` are this project's own.

Units: times are ns of the host's clock; addresses, lengths and register values as the guest has them. IDs of kicks
count from 1 in a run, and 0 is none: a wake or an exit that a kick brought about carries its ID.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, ClassVar, Final, get_type_hints

from vtlkit.trace.template import Template, Value

NO_VCPU: Final = -1
"""`Event.vcpu` of what concerns a whole VM."""
_LIMIT: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Event:
    """What every event has: when, in whose context, and the vCPU that it is about.

    `task` is the name of the task or timer whose code made it; `vm` names the VM (one VTL of a partition).
    """

    name: ClassVar[str] = "event"
    form: ClassVar[str] = ""
    time_ns: int
    task: str
    vm: str
    vcpu: int

    def payload(self) -> str:
        """What stands behind the name in a text trace."""
        return TEMPLATES[self.name].render(self)

    def values(self) -> dict[str, Value]:
        """All fields by name, the common ones first."""
        return dict(zip(FIELDS[self.name], _GETTERS[self.name](self), strict=True))


def vcpu_name(vm: str, vcpu: int) -> str:
    """`vtl0-vcpu1`; the VM's name alone for what concerns all of it."""
    return vm if vcpu == NO_VCPU else f"{vm}-vcpu{vcpu}"


@dataclass(frozen=True, slots=True)
class KvmEntry(Event):
    """Guest mode is entered; `immediate_exit`: to be left before the first instruction."""

    name: ClassVar[str] = "kvm_entry"
    form: ClassVar[str] = "vcpu {vcpu}, rip {rip:x}{immediate_exit? [immediate exit]}"
    rip: int
    immediate_exit: bool


@dataclass(frozen=True, slots=True)
class KvmExit(Event):
    """Guest mode has been left. `info1`, `info2` as EXITINFO1 and 2, `intr_info` and `error_code` as EXITINTINFO of the
    AMD APM; `kicked_by` is the kick that made the engine stop."""

    name: ClassVar[str] = "kvm_exit"
    form: ClassVar[str] = (
        "vcpu {vcpu} reason {reason} rip {rip:x} info1 {info1:016x} info2 {info2:016x} "
        "intr_info {intr_info:08x} error_code {error_code:08x}{kicked_by? kick %d}"
    )
    reason: str
    rip: int
    info1: int = 0
    info2: int = 0
    intr_info: int = 0
    error_code: int = 0
    kicked_by: int = 0


@dataclass(frozen=True, slots=True)
class KvmUserspaceExit(Event):
    """`Vcpu.run` returns; `number` is KVM_EXIT_*'s, or 4 (EINTR) where the reason is restart."""

    name: ClassVar[str] = "kvm_userspace_exit"
    form: ClassVar[str] = "reason {reason} ({number})"
    reason: str
    number: int


@dataclass(frozen=True, slots=True)
class KvmVcpuBlock(Event):
    """The vCPU sleeps. `state`: its MP state; or WAIT_HALT, WAIT_INACTIVE_VTL: a wait call; COMPLETION: of a VTL
    switch; SUSPENDED: at an instruction that cannot be executed now; KICKED: until a kick of all is resumed."""

    name: ClassVar[str] = "kvm_vcpu_block"
    form: ClassVar[str] = "vcpu {vcpu} state {state}"
    state: str


@dataclass(frozen=True, slots=True)
class KvmVcpuWakeup(Event):
    """The vCPU goes on after `ns`; `waited`: it slept, else it polled; `valid`: the poll found a wake event, or was not
    tried. `woken_by` is the kick that ended it."""

    name: ClassVar[str] = "kvm_vcpu_wakeup"
    form: ClassVar[str] = "{waited?wait|poll} time {ns} ns, polling {valid?valid|invalid}{woken_by? kick %d}"
    ns: int
    waited: bool = True
    valid: bool = True
    woken_by: int = 0


@dataclass(frozen=True, slots=True)
class KvmVcpuKick(Event):
    """The vCPU's attention is wanted. `source`: the vCPU that the sender's task runs, or else the task or timer."""

    name: ClassVar[str] = "kvm_vcpu_kick"
    form: ClassVar[str] = "vcpu {vcpu} kick {id} from {source}"
    id: int
    source: str


@dataclass(frozen=True, slots=True)
class KvmVcpuSignal(Event):
    """User space interrupts the vCPU's run; a kick follows."""

    name: ClassVar[str] = "kvm_vcpu_signal"
    form: ClassVar[str] = "vcpu {vcpu} from {source}"
    source: str


@dataclass(frozen=True, slots=True)
class KvmMakeRequest(Event):
    """A request bit is set on the vCPU."""

    name: ClassVar[str] = "kvm_make_request"
    form: ClassVar[str] = "vcpu {vcpu} request {request} from {source}"
    request: str
    source: str


@dataclass(frozen=True, slots=True)
class KvmApicAcceptIrq(Event):
    """A local APIC accepts a message."""

    name: ClassVar[str] = "kvm_apic_accept_irq"
    form: ClassVar[str] = "apicid {apic_id:h} vec {vector} ({mode}|{level?level|edge})"
    apic_id: int
    vector: int
    mode: str
    level: bool


@dataclass(frozen=True, slots=True)
class KvmApicIpi(Event):
    """The vCPU sends a message."""

    name: ClassVar[str] = "kvm_apic_ipi"
    form: ClassVar[str] = "dst {dest_id:h} vec {vector} ({mode}|{logical?logical|physical}|{shorthand})"
    dest_id: int
    vector: int
    mode: str
    logical: bool
    shorthand: str


@dataclass(frozen=True, slots=True)
class KvmInjVirq(Event):
    """An interrupt is given to the engine; `reinjected`: its delivery had been cut short by an exit."""

    name: ClassVar[str] = "kvm_inj_virq"
    form: ClassVar[str] = "{soft?Soft/INTn|IRQ} {vector:x}{reinjected? [reinjected]}"
    vector: int
    soft: bool = False
    reinjected: bool = False


@dataclass(frozen=True, slots=True)
class KvmInjNmi(Event):
    """An NMI is given to the engine."""

    name: ClassVar[str] = "kvm_inj_nmi"
    form: ClassVar[str] = "NMI{reinjected? [reinjected]}"
    reinjected: bool = False


@dataclass(frozen=True, slots=True)
class KvmInjException(Event):
    """An exception is given to the engine; `exception` is its mnemonic."""

    name: ClassVar[str] = "kvm_inj_exception"
    form: ClassVar[str] = "{exception} ({error_code:x}){reinjected? [reinjected]}"
    exception: str
    error_code: int
    reinjected: bool = False


@dataclass(frozen=True, slots=True)
class KvmEoi(Event):
    """The guest has ended an interrupt."""

    name: ClassVar[str] = "kvm_eoi"
    form: ClassVar[str] = "apicid {apic_id:h} vector {vector}"
    apic_id: int
    vector: int


@dataclass(frozen=True, slots=True)
class KvmHypercall(Event):
    """One of KVM's own hypercalls."""

    name: ClassVar[str] = "kvm_hypercall"
    form: ClassVar[str] = "nr {nr:x} a0 {a0:x} a1 {a1:x} a2 {a2:x} a3 {a3:x}"
    nr: int
    a0: int
    a1: int
    a2: int
    a3: int


@dataclass(frozen=True, slots=True)
class KvmHvHypercall(Event):
    """A Hyper-V hypercall, in the fields of its input value; `in_gpa`, `out_gpa` are the parameters of a fast one."""

    name: ClassVar[str] = "kvm_hv_hypercall"
    form: ClassVar[str] = (
        "code {code:x} {fast?fast|slow} var_cnt {var_cnt:x} rep_cnt {rep_cnt:x} idx {idx:x} "
        "in {in_gpa:x} out {out_gpa:x}"
    )
    code: int
    fast: bool
    var_cnt: int
    rep_cnt: int
    idx: int
    in_gpa: int
    out_gpa: int


@dataclass(frozen=True, slots=True)
class KvmHvHypercallDone(Event):
    """The guest is given a Hyper-V hypercall's result; VTL call and return have none."""

    name: ClassVar[str] = "kvm_hv_hypercall_done"
    form: ClassVar[str] = "result {result:x}"
    result: int


@dataclass(frozen=True, slots=True)
class KvmNestedVmenter(Event):
    """L1 enters L2. `rip`: L1's, behind VMRUN; `vmcb`: where L2's control block is."""

    name: ClassVar[str] = "kvm_nested_vmenter"
    form: ClassVar[str] = (
        "rip: {rip:016x} vmcb: {vmcb:016x} nested_rip: {nested_rip:016x} int_ctl: {int_ctl:08x} "
        "event_inj: {event_inj:08x} nested_npt=n guest_cr3: {guest_cr3:016x}"
    )
    rip: int
    vmcb: int
    nested_rip: int
    int_ctl: int
    event_inj: int
    guest_cr3: int


@dataclass(frozen=True, slots=True)
class KvmNestedVmexitInject(Event):
    """L2 is left for L1, which is told so."""

    name: ClassVar[str] = "kvm_nested_vmexit_inject"
    form: ClassVar[str] = (
        "reason: {reason} ext_inf1: {info1:016x} ext_inf2: {info2:016x} "
        "ext_int: {int_info:08x} ext_int_err: {int_info_err:08x}"
    )
    reason: str
    info1: int
    info2: int
    int_info: int
    int_info_err: int


@dataclass(frozen=True, slots=True)
class KvmPageFault(Event):
    """An access that the vCPU's memory map does not permit; `error_code` as the processor's."""

    name: ClassVar[str] = "kvm_page_fault"
    form: ClassVar[str] = "vcpu {vcpu} rip {rip:x} address {address:016x} error_code {error_code:x}"
    rip: int
    address: int
    error_code: int


@dataclass(frozen=True, slots=True)
class KvmPio(Event):
    """IN or OUT, with the value read or written."""

    name: ClassVar[str] = "kvm_pio"
    form: ClassVar[str] = "pio_{write?write|read} at {port:x} size {size} count 1 val {value:x}"
    write: bool
    port: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class KvmMmio(Event):
    """A load or store of a device's memory, with the value."""

    name: ClassVar[str] = "kvm_mmio"
    form: ClassVar[str] = "mmio {write?write|read} len {size} gpa {gpa:x} val {value:x}"
    write: bool
    size: int
    gpa: int
    value: int


@dataclass(frozen=True, slots=True)
class KvmMsr(Event):
    """RDMSR or WRMSR that exited; `exception`: it was refused."""

    name: ClassVar[str] = "kvm_msr"
    form: ClassVar[str] = "msr_{write?write|read} {index:h} = {value:x}{exception? (#GP)}"
    write: bool
    index: int
    value: int
    exception: bool = False


@dataclass(frozen=True, slots=True)
class KvmMemoryChange(Event):
    """The VM's memory map changed in a range: what backs it (slots, overlays), or what guests may do there."""

    name: ClassVar[str] = "kvm_memory_change"
    form: ClassVar[str] = "gpa {gpa:x} size {size:x} {backing?backing|attributes}"
    gpa: int
    size: int
    backing: bool


@dataclass(frozen=True, slots=True)
class VtlSwitch(Event):
    """The processor leaves this VTL's vCPU for that of the VTL `target`; `reason` names the entry reason, if any."""

    name: ClassVar[str] = "vtl_switch"
    form: ClassVar[str] = "vp {vcpu} vtl {source} -> {target} reason {reason}"
    source: int
    target: int
    reason: str


@dataclass(frozen=True, slots=True)
class CheckStep(Event):
    """One step of a counterexample, by `task`; no vCPU and no VM are concerned, and `time_ns` is the step's number.
    `source`: the step that wrote what this one read, 0 if none did; `place`: the code's line."""

    name: ClassVar[str] = "check_step"
    form: ClassVar[str] = "step {step}{source? sees %d} at {place}: {text}"
    step: int
    source: int
    place: str
    text: str


CLASSES: Final[dict[str, type[Event]]] = {
    kind.name: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}
"""Every class by its event's name."""
FIELDS: Final = {name: tuple(field.name for field in fields(kind)) for name, kind in CLASSES.items()}
_GETTERS: Final[dict[str, Callable[[Event], tuple[Value, ...]]]] = {key: attrgetter(*of) for key, of in FIELDS.items()}
KINDS: Final[dict[str, dict[str, type]]] = {
    name: {field: hint for field, hint in get_type_hints(kind).items() if field in FIELDS[name]}
    for name, kind in CLASSES.items()
}
"""Types of the fields by event and field."""
TEMPLATES: Final = {name: Template(kind.form, KINDS[name]) for name, kind in CLASSES.items()}


class MalformedEvent(ValueError):
    """What was read is no event of a trace."""


def from_values(name: str, values: dict[str, Any]) -> Event:
    """An event from its name and fields.

    Raises:
        MalformedEvent: no such event, or not its fields.
    """
    if (kinds := KINDS.get(name)) is None:
        raise MalformedEvent(f"there is no event '{name[:40]}'")
    if values.keys() != kinds.keys() or any(type(values[field]) is not kind for field, kind in kinds.items()):
        raise MalformedEvent(f"'{name}' does not have such fields")
    # No tracepoint writes such: a terminal would obey the text, and no time or register is so large.
    for value in values.values():
        if not (value.isprintable() if isinstance(value, str) else NO_VCPU <= value < _LIMIT):
            raise MalformedEvent(f"'{name}' has a value that no event has")
    return CLASSES[name](**values)
