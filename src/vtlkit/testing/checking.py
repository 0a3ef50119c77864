"""Tests of protocols: all that one can do is checked, and a failure shows the counterexample as a table.

    def test_handover() -> None:
        assert_proved(handover, wakers=2)

where `handover` is a function marked by `vtlkit.checker.protocol`, a `Protocol` of the registry, or any function from
(memory model, sizes) to a program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from vtlkit.checker.check import MODELS, check
from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Protocol
from vtlkit.checker.result import Counterexample, ProblemKind, Result, Verdict
from vtlkit.checker.telling import describe
from vtlkit.checker.user import as_protocol, is_marked

Checked = Protocol | Callable[..., object]


def assert_proved(build: Checked, models: Iterable[str] | None = None, **sizes: int) -> list[Result]:
    """Nothing forbidden can happen, for these sizes, under any of these models; the results have the counts.

    `models` are by default those that the protocol is for. Raises AssertionError with the table of the first
    counterexample, or with what was left unlooked at; ValueError for a size or a model that there is not.
    """
    if models is None:
        models = build.models if isinstance(build, Protocol) else MODELS
    return [_proved(build, model, sizes) for model in models]


def assert_counterexample(
    build: Checked, model: str, kind: ProblemKind, steps: int | None = None, **sizes: int
) -> Counterexample:
    """The check finds something of this kind, in this number of steps if one is given.

    Raises AssertionError that says what was found instead; ValueError as `assert_proved`.
    """
    return _found(_result(build, model, sizes), kind, steps)


def assert_variant(protocol: Protocol, name: str) -> None:
    """A known-bad variant of a protocol is found, as it is expected under each model. Raises as the others."""
    bad = protocol.variant(name)
    for model, expected in bad.expect.items():
        program = bad.build(model, {**protocol.sizes, **bad.sizes})
        result = check(program, model, engine=protocol.engine)
        if expected is None:
            _no_problem(result)
        else:
            _found(result, *expected)


def _proved(build: Checked, model: str, sizes: Mapping[str, int]) -> Result:
    result = _result(build, model, sizes)
    _no_problem(result)
    return result


def _result(build: Checked, model: str, sizes: Mapping[str, int]) -> Result:
    if isinstance(build, Protocol) or is_marked(build):
        protocol = build if isinstance(build, Protocol) else as_protocol(build)
        unknown = [name for name in sizes if name not in protocol.sizes]
        if unknown:
            raise ValueError(f"{protocol.name} has no size '{unknown[0]}': there are {', '.join(protocol.sizes)}")
        return check(protocol.build(model, {**protocol.sizes, **sizes}), model, engine=protocol.engine)
    program = build(model, sizes)
    if not hasattr(program, "next_op"):
        raise ValueError(f"{build} makes no program of a model and sizes, and is not marked as a protocol")
    made: Program = program  # type: ignore[assignment]
    return check(made, model)


def _no_problem(result: Result) -> None:
    if result.verdict is Verdict.COUNTEREXAMPLE:
        raise AssertionError(f"under {result.model}: {describe(result)}")
    if result.verdict is Verdict.BOUND:
        raise AssertionError(f"under {result.model}: not proved: {'; '.join(result.notes) or 'a bound was reached'}")


def _found(result: Result, kind: ProblemKind, steps: int | None) -> Counterexample:
    found = result.counterexample
    if found is None:
        raise AssertionError(f"under {result.model}: no {kind.value}: {result.verdict.value}")
    if found.kind is not kind or steps not in (None, len(found.steps)):
        wanted = f"{kind.value}{'' if steps is None else f' in {steps} steps'}"
        raise AssertionError(f"under {result.model}: expected {wanted}, found {describe(result)}")
    return found
