"""The questions, and which sentence follows from which verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vtlkit.checker.compiler import IN_PLACE
from vtlkit.checker.findings import Case, Findings, Page, breaks, joined, under
from vtlkit.checker.models.posted import BARRIERS, SITES

_POSTED: Final = "kernel.posted-inhibit"
_TWO_CYCLES: Final = (("cycles", 2),)
_TWO_INHIBITORS: Final = (("inhibitors", 2),)
_STATES: Final = ("sc", "tso")


def _sized(text: str, variant: str = "", *, weak: bool = False) -> tuple[Case, ...]:
    """A variant of the posted series at three sizes: the smallest, two cycles, two inhibitors (`weak`: under RC11
    too, which takes a minute)."""
    return (
        Case(text, _POSTED, variant),
        Case(f"{text}; set and cleared twice", _POSTED, variant, _TWO_CYCLES, slow=True),
        Case(
            f"{text}; two inhibitors",
            _POSTED,
            variant,
            _TWO_INHIBITORS,
            ("sc", "tso", "rc11") if weak else _STATES,
            slow=True,
        ),
    )


def _any(found: Findings, cases: Sequence[Case]) -> list[str]:
    """Models under which one of these is broken."""
    broken = {model for case in cases for model in breaks(found, case)}
    return [model for model in ("sc", "tso", "rc11") if model in broken]


# --- (a) which barrier protects the pair ------------------------------------------------------------------------------

_AS_POSTED: Final = _sized("as posted", weak=True)
_WITHOUT: Final = {name: _sized(f"without {text}", f"no-{name}") for name, text in BARRIERS.items()}
_FUSED: Final = Case(
    "without synchronize_srcu before the look, and the hypercall does not look at `suspended` again",
    _POSTED,
    "no-clear-srcu-fused",
)
_NO_WMB: Final = _sized("without all three smp_wmb", "no-wmb")
_REQUEST: Final = Case("kernel.requests without smp_wmb in __kvm_make_request", "kernel.requests", "no-request-barrier")


def _barriers(found: Findings) -> list[str]:
    posted = _any(found, _AS_POSTED)
    if posted:
        return [f"The series as posted is broken {under(posted)}, whatever the barriers."]
    needed = {name: models for name in BARRIERS if (models := _any(found, _WITHOUT[name]))}
    idle = [BARRIERS[name] for name in BARRIERS if name not in needed]
    if "request-wmb" in needed:
        sentences = [
            f"Among others the smp_wmb of __kvm_make_request: without it broken {under(needed['request-wmb'])}."
        ]
    else:
        rest = [BARRIERS[name] for name in ("clear-srcu", "wake-mb", "sleep-mb") if name in needed]
        sentences = [
            "Not the smp_wmb of __kvm_make_request. That a vCPU sees either the inhibit cleared or a wake event it "
            f"owes to {joined(rest)}."
        ]
    sentences.append("Needed, so that a flusher goes on and no flush is completed too early:")
    sentences += [f"- {BARRIERS[name]}; without it broken {under(models)}" for name, models in needed.items()]
    if idle:
        together = "one of them breaks nothing"
        if all("wmb" in name for name in BARRIERS if name not in needed) and not _any(found, _NO_WMB):
            together += ", and neither does leaving out all of them"
        sentences.append(f"Nothing here depends on {joined(idle)}: leaving out {together} at these sizes.")
    if breaks(found, _REQUEST):
        sentences.append(
            "The smp_wmb of __kvm_make_request is for what a request is about: its receiver reads that after it has "
            f"taken the request (`{_REQUEST.command}`)."
        )
    return sentences


_A = Page(
    "barrier",
    "Which barrier protects the inhibit and its wake-up?",
    "A reviewer of the posted suspended state wrote that this code makes it hard to see what guarantees that a vCPU "
    "does not get stuck blocking, and that the protection is the smp_wmb() in __kvm_make_request(). Which barriers are "
    "needed so that a suspended vCPU sees the inhibit cleared, or a wake event?",
    [*_AS_POSTED, *[case for cases in _WITHOUT.values() for case in cases], *_NO_WMB, _FUSED, _REQUEST],
    _barriers,
    [_WITHOUT["wake-mb"][0], _WITHOUT["sleep-mb"][0], _FUSED],
    "Each barrier is left out in turn, all else being as posted. What breaks under rc11 alone breaks where "
    "dependencies order nothing: in the kernel's own memory model one may do what the barrier does.",
)

# --- (b) which marks matter -------------------------------------------------------------------------------------------

_PLAIN: Final = {
    # Where nothing was found at the other sizes, the last one is worth its minute.
    site.name: _sized(f"plain: {site.text}", f"plain-{site.name}", weak=site.name == "suspend.waiting_on")
    for site in SITES
}
_FORMS: Final = {
    (site.name, form): _sized(f"{form}: {site.text}", f"{site.name}-{form.replace(' ', '-')}")
    for site in SITES
    for form in site.forms
}
_EVERY: Final = Case(
    f"all {len(SITES)} plain, every way to compile them",
    "kernel.posted-compiled",
    models=("tso", "rc11"),
    every="compilation",
    slow=True,
)


def _marks(found: Findings) -> list[str]:
    racing = [site for site in SITES if _any(found, _PLAIN[site.name])]
    quiet = [site for site in SITES if site not in racing]
    bad = [(name, form) for (name, form), cases in _FORMS.items() if _any(found, cases)]
    sentences = []
    if bad:
        sentences.append("Compiled as a plain access, the promise is broken by:")
        sentences += [f"- {name}, {form}, {under(_any(found, _FORMS[name, form]))}" for name, form in bad]
        sentences.append("These marks are needed.")
    else:
        sentences.append(
            f"No mark is needed for the promise: none of the {len(_FORMS)} transformations, one at a time, breaks it "
            f"under any model. {IN_PLACE.capitalize()}, a plain access does what a marked one does."
        )
        if _EVERY in found:
            together = breaks(found, _EVERY)
            sentences.append(
                f"All at once, some do {under(together)}."
                if together
                else "Nor do all of them, in any combination, at the smallest size."
            )
    if racing:
        sentences.append(
            f"By the memory model's own rule {len(racing)} of {len(SITES)} are needed all the same: without the mark "
            "they race with an access that nothing orders, which is undefined whatever a compiler does today:"
        )
        sentences += [f"- {site.text} ({under(_any(found, _PLAIN[site.name]))})" for site in racing]
    if quiet:
        sentences.append("Never in a race at these sizes, and so superfluous by both rules:")
        sentences += [f"- {site.text}" for site in quiet]
    return sentences


_B = Page(
    "once",
    "Which READ_ONCE and WRITE_ONCE of the series matter?",
    "One reviewer could think of no place in the posted series where READ_ONCE makes a difference; the author keeps "
    "them, as shared variables should be marked. Which of them could be plain accesses?",
    [case for cases in [*_PLAIN.values(), *_FORMS.values(), [_EVERY]] for case in cases],
    _marks,
    [_PLAIN["flush.inhibit"][0], _PLAIN["block.suspended"][0]],
    "Two questions for each access. A row `plain` asks whether the access, without its mark, is part of a data race. "
    "The rows after those ask what becomes of the promise if a compiler uses its freedom with that access; which "
    "transformations these are stands in [the kernel's vocabulary](../design/checker-kernel.md); stores that a "
    "compiler invents or drops are not among them. An access that is made where it stands does what a marked one does, "
    "and needs no row.",
)

# --- (c) merging the two words ----------------------------------------------------------------------------------------

_MERGED: Final = _sized("`suspended` merged into `waiting_on`", "merged", weak=True)
_MERGED_TORN: Final = _sized("merged, and a compiler tears its stores", "merged-torn")


def _merging(found: Findings) -> list[str]:
    broken, torn = _any(found, _MERGED), _any(found, _MERGED_TORN)
    if broken:
        return [f"No: with one word the promise is broken {under(broken)}."]
    sentences = [
        "Yes. With `waiting_on` alone, where -1 says that the vCPU is not suspended, the promise is kept under every "
        "model at every size that was asked for."
    ]
    ordered = {name: _any(found, _WITHOUT[name]) for name in ("suspend-wmb", "release-wmb")}
    for name, models in ordered.items():
        if models:
            sentences.append(
                f"It is even safer: the two words rely on {BARRIERS[name]}, without which they are broken "
                f"{under(models)}; one word has nothing to order."
            )
    if not any(ordered.values()):
        sentences.append("Nothing is lost with the two barriers between the words either: nothing relies on them.")
    sentences.append(
        f"The one word needs WRITE_ONCE: torn stores break it {under(torn)}."
        if torn
        else "It does not even need its stores to be whole: torn ones break nothing."
    )
    return sentences


_C = Page(
    "merge",
    "Is it safe to merge `suspended` into `waiting_on`?",
    "It was proposed in review to drop `suspended`, and to let `waiting_on` alone say whether a vCPU is suspended, "
    "which makes the loop that lets vCPUs go much simpler. Does the promise survive?",
    [*_MERGED, *_MERGED_TORN, *_WITHOUT["suspend-wmb"], *_WITHOUT["release-wmb"]],
    _merging,
    [*_MERGED, *_MERGED_TORN, *_WITHOUT["release-wmb"]],
)

# --- (d) clearing the kick at the first exit --------------------------------------------------------------------------

_STICKY: Final = Case("model: cleared by the resume, as posted", "kernel.kick-all")
_UNORDERED: Final = Case(
    "model: cleared by the resume, and nothing orders what was done since the kick before that",
    "kernel.kick-all",
    "no-resume-barrier",
)
_FIRST: Final = Case("model: cleared by the first exit", "kernel.kick-all", "first-exit")
_FIRST_RETURN: Final = Case(
    "model: cleared by the first exit, asked is only that the kick returns", "kernel.kick-all", "first-exit-return"
)
_UNLOCK: Final = Case("model: cleared before up_write", "kernel.kick-all", "before-unlock")
_UNLOCK_RETURN: Final = Case(
    "model: cleared before up_write, asked is only that the kick returns", "kernel.kick-all", "before-unlock-return"
)
_OURS: Final = Case("shipped: cleared by the resume", "review.kick")
_OURS_FIRST: Final = Case("shipped: cleared by the first exit", "review.kick", "first-exit")
_OURS_RETURN: Final = Case(
    "shipped: cleared by the first exit, asked is only that nobody waits for ever", "review.kick", "first-exit-return"
)
_OURS_PROPOSED: Final = Case(
    "shipped: cleared by the first exit, and no run is refused while a kicker waits",
    "review.kick",
    "first-exit-as-proposed",
)
_OURS_UNLOCK: Final = Case("shipped: cleared before up_write", "review.kick", "unlock")
_OURS_UNLOCK_RETURN: Final = Case(
    "shipped: cleared before up_write, asked is only that nobody waits for ever", "review.kick", "unlock-return"
)


def _kinds(found: Findings, case: Case) -> str:
    kinds = {finding.broken for finding in found.get(case, {}).values() if finding.broken}
    return joined(sorted(kinds))


def _kick(found: Findings) -> list[str]:
    sentences = []
    if lost := breaks(found, _FIRST_RETURN):
        sentences.append(
            f"Yes. Cleared by the first exit, the kick can be lost ({_kinds(found, _FIRST_RETURN)} {under(lost)}): the "
            "vCPU takes the request, user space runs it again before the kicker has queued for the semaphore, and "
            "nothing makes it leave."
        )
    else:
        sentences.append("No kick is lost: it returns under every model.")
    if breaks(found, _OURS_PROPOSED) and not breaks(found, _OURS_RETURN):
        sentences.append(
            "What mends that is to refuse KVM_RUN while a kicker waits, as the shipped first-exit design does."
        )
    halves = [
        (name, case)
        for name, case in (("the first exit", _OURS_FIRST), ("the kicker before up_write", _OURS_UNLOCK))
        if breaks(found, case)
    ]
    for name, case in halves:
        sentences.append(
            f"Cleared by {name}, a guest can run between kick and resume ({under(breaks(found, case))}): user space "
            "has to stop its vCPUs by means of its own."
        )
    if not breaks(found, _STICKY) and not breaks(found, _OURS):
        sentences.append(
            "Cleared by the resume alone, as posted, both halves of the promise hold, in the model and as shipped."
        )
    if unordered := breaks(found, _UNORDERED):
        sentences.append(
            f"That needs a barrier between what is done while the vCPUs are out and the clearing ({under(unordered)}): "
            "the model has the grace period of a change of slots, and the shipped resume a full barrier of its own, as "
            "clearing a bit orders nothing."
        )
    if not breaks(found, _UNLOCK_RETURN) and not breaks(found, _OURS_UNLOCK_RETURN):
        sentences.append("Cleared before up_write, one kick always returns.")
    return sentences


_D = Page(
    "kick",
    "Can clearing the kick at the first exit lose a kick?",
    "KVM_KICK_ALL_RUNNING_VCPUS leaves its request set until KVM_RESUME_ALL_KICKED_VCPUS. In answer it was asked: why "
    "not clear it after the first exit, or right before up_write(), as user space should not spin on KVM_RUN anyway?",
    [
        _STICKY,
        _UNORDERED,
        _FIRST,
        _FIRST_RETURN,
        _UNLOCK,
        _UNLOCK_RETURN,
        _OURS,
        _OURS_FIRST,
        _OURS_RETURN,
        _OURS_PROPOSED,
        _OURS_UNLOCK,
        _OURS_UNLOCK_RETURN,
    ],
    _kick,
    [_FIRST_RETURN, _OURS_FIRST],
    "The promise has two halves: the kick returns, with every vCPU out of KVM_RUN; and no guest runs between its "
    "return and the resume.",
)

# --- (e) KVM_REQ_UNBLOCK in place of KVM_REQ_EVENT --------------------------------------------------------------------

_UNBLOCK: Final = _sized("model: KVM_REQ_UNBLOCK", "unblock")
_RELEASE: Final = Case("shipped: KVM_REQ_EVENT", "review.release")
_RELEASE_UNBLOCK: Final = Case("shipped: KVM_REQ_UNBLOCK", "review.release", "unblock")
_NO_WAKE: Final = _WITHOUT["wake"][0]


def _unblock(found: Findings) -> list[str]:
    model, shipped = _any(found, _UNBLOCK), breaks(found, _RELEASE_UNBLOCK)
    sentences = []
    if model or shipped:
        for where, models in (("the model", model), ("the shipped code", shipped)):
            if models:
                sentences.append(f"With KVM_REQ_UNBLOCK {where} is broken {under(models)}.")
    else:
        sentences.append(
            "Nothing: with KVM_REQ_UNBLOCK the model and the shipped code keep the promise under every model."
        )
    if breaks(found, _NO_WAKE):
        sentences.append(
            "Whichever request it is, it does not make the vCPU go on: that is `suspended`, which it reads, and the "
            "wake-up, without which it sleeps on with the request set."
        )
    return sentences


_E = Page(
    "request",
    "What breaks if KVM_REQ_UNBLOCK replaces KVM_REQ_EVENT?",
    "Letting a suspended vCPU go makes KVM_REQ_EVENT, which triggers a lot of processing though there is no event. "
    "A reviewer thinks that KVM_REQ_UNBLOCK is more appropriate. Is it enough?",
    [*_AS_POSTED[:1], *_UNBLOCK, _RELEASE, _RELEASE_UNBLOCK, _NO_WAKE],
    _unblock,
    [*_UNBLOCK, _RELEASE_UNBLOCK, _NO_WAKE],
)

PAGES: Final = (_A, _B, _C, _D, _E)

GUARANTEES: Final = (
    Case("model: kvm_vcpu_block and rcuwait_wake_up", "kernel.block"),
    Case("model: requests, mode and IPI", "kernel.requests"),
    Case("model: kick-all as posted", "kernel.kick-all"),
    Case("model: the posted TLB-flush inhibit", _POSTED),
    Case("shipped: kick-all", "review.kick"),
    Case("shipped: the posted TLB-flush inhibit is cleared", "review.release"),
)
"""What the index says first."""
