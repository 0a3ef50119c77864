"""`vtlkit info`: what is installed, what can execute guests here and why the rest cannot, which guests come with it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from typing import Annotated, Final

import typer

from vtlkit import __version__

DEPENDENCIES: Final = ("unicorn", "iced-x86", "greenlet", "numpy", "typer", "rich", "perfetto", "protobuf")
KVM_DEVICE: Final = "/dev/kvm"
_KVM_GET_API_VERSION: Final = 0xAE00
_KVM_API_VERSION: Final = 12

FEATURES: Final = {
    "virtual processors": "1 to 255",
    "virtual trust levels": "1 to 16",
    "guest images": "multiboot, PVH, ELF64",
    "modes": "deterministic (default, --seed), real time (--realtime)",
    "hypervisor interface": "Hyper-V with VSM (TLFS)",
    "interrupt controllers": "xAPIC, x2APIC, I/O APIC, PIC, PIT, MSI",
}
"""What guests get, as they would ask for it."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """Whether an engine can be used here; `detail` is its version or why not."""

    name: str
    usable: bool
    detail: str


def info(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> int:
    """Say what can run here, and why the rest cannot."""
    engines = [unicorn_state(), kvm_state()]
    versions = {"vtlkit": __version__, "python": platform.python_version(), **_dependency_versions()}
    host = {"system": f"{platform.system()} {platform.machine()}", "cores": len(os.sched_getaffinity(0))}
    if as_json:
        data = {
            "versions": versions,
            "engines": [asdict(engine) for engine in engines],
            "host": host,
            "guests": _guests(),
            "features": FEATURES,
            "hv": hv_features(),
        }
        print(json.dumps(data, indent=1))
        return 0
    _section("versions", {name: version or "missing" for name, version in versions.items()})
    _section("engines", {e.name: f"{'usable' if e.usable else 'not usable'}: {e.detail}" for e in engines})
    _section("host", {"system": str(host["system"]), "cores": str(host["cores"])})
    _section("guests", _guests())
    _section("features", FEATURES)
    _section("Hyper-V features (--hv)", hv_features())
    return 0


def _section(title: str, rows: dict[str, str]) -> None:
    width = max(len(name) for name in rows)
    print(title)
    for name, text in rows.items():
        print(f"  {name:<{width}}  {text}")


def _dependency_versions() -> dict[str, str | None]:
    from importlib import metadata

    found: dict[str, str | None] = {}
    for name in DEPENDENCIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _guests() -> dict[str, str]:
    from vtlkit import guests

    return {name: f"{guests.path(name)}" for name in guests.names()}


def hv_features() -> dict[str, str]:
    """What `--hv` takes, and what each is; those that are off unless asked for say so."""
    from vtlkit.kvm.hyperv.features import DESCRIPTIONS, EVERYTHING, VALUES, spelled

    found = {}
    for name, text in DESCRIPTIONS.items():
        default = getattr(EVERYTHING, name)
        if name in VALUES:
            text += f" (default {default})"
        elif not default:
            text += " (not in all)"
        found[spelled(name)] = text
    return found


def unicorn_state() -> EngineState:
    """Makes an engine factory, and so runs the self-check."""
    from vtlkit.engine.api import EngineError
    from vtlkit.engine.unicorn import UnicornFactory

    try:
        factory = UnicornFactory()
    except EngineError as error:
        return EngineState("unicorn", False, str(error))
    major, minor = factory.lib.version
    factory.close()
    return EngineState("unicorn", True, f"Unicorn {major}.{minor}, self-check passed")


def kvm_state() -> EngineState:
    """Whether /dev/kvm can be used, and what `--engine auto` thinks of it, which takes a few milliseconds."""
    from vtlkit.cli.engine_choice import judge_kvm

    verdict = judge_kvm()
    if not verdict.usable:
        return EngineState("kvm", False, verdict.reason)
    choice = "chosen by --realtime" if verdict.preferred else "with --engine kvm only"
    lacks = f"; lacks {', '.join(verdict.lacks)}" if verdict.lacks else ""
    return EngineState("kvm", True, f"{choice}: {verdict.reason}{lacks}")


def kvm_answers(device: str) -> bool:
    """Whether the device can be opened and speaks KVM's interface."""
    return _probe_kvm(device)[0]


def describe_kvm(device: str) -> str:
    """One clause on the device: there, not there, not permitted, or of another version."""
    return _probe_kvm(device)[1]


def _probe_kvm(device: str) -> tuple[bool, str]:
    import fcntl

    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return False, f"{device}: {error.strerror}"
    try:
        version = fcntl.ioctl(descriptor, _KVM_GET_API_VERSION, 0)
    except OSError as error:
        return False, f"{device} does not answer as KVM does: {error.strerror}"
    finally:
        os.close(descriptor)
    if version != _KVM_API_VERSION:
        return False, f"{device} speaks version {version} of its interface, not {_KVM_API_VERSION}"
    return True, f"{device} is there and can be opened"
