"""`Simulator`: the deterministic host. Construction, the Host's factories, replay tokens.

Promise: a run is a function of the code and of its token. Whatever leaves `run()` carries the token that reproduces it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vtlkit.host.api import Bitmap, Cell, Lock, LockRank, RunnableHost, RwSem, Task, Timer, WaitQueue
from vtlkit.host.sim.cells import InstrumentedBitmap, InstrumentedCell, SimBitmap, SimCell
from vtlkit.host.sim.choices import (
    Choice,
    Choices,
    ChoiceSource,
    ReplaySource,
    SeededSource,
    decode_choices,
    encode_choices,
)
from vtlkit.host.sim.clock import SimTimer
from vtlkit.host.sim.run import RunLoop
from vtlkit.host.sim.schedulers import SCHEDULERS, FifoScheduler, RandomScheduler
from vtlkit.host.sim.sync import SimLock, SimRwSem, SimWaitQueue
from vtlkit.host.sim.task import SimTask

T = TypeVar("T")

DEFAULT_SLICE_NS = 50_000
"""Guest slice of a task that has competitors."""
EXPLICIT = "choices"
"""Token kind whose body is the recorded choices."""


@dataclass(frozen=True, slots=True)
class Token:
    """What names a run: `seed:7`, `fifo:0`, `seed:7,instrument,slice=1000`, or `choices:seed,instrument:<base64>`."""

    scheduler: str
    seed: int | None
    """None for a token of explicit choices."""
    instrument: bool
    slice_ns: int
    choices: tuple[Choice, ...] = ()

    def __str__(self) -> str:
        options = ",instrument" if self.instrument else ""
        if self.slice_ns != DEFAULT_SLICE_NS:
            options += f",slice={self.slice_ns}"
        if self.seed is not None:
            return f"{self.scheduler}:{self.seed}{options}"
        return f"{EXPLICIT}:{self.scheduler}{options}:{encode_choices(list(self.choices))}"

    @staticmethod
    def parse(text: str) -> Token:
        """Undo `str`. Raises ValueError if `text` is not a replay token."""
        kind, _, rest = text.strip().partition(":")
        choices: list[Choice] = []
        seed: int | None = None
        head, _, body = rest.partition(":")
        first, *options = head.split(",")
        if kind == EXPLICIT:
            choices = decode_choices(body)
            kind = first
        else:
            seed = int(first) if first.isdecimal() else None
        if kind not in SCHEDULERS or (seed is None and not body) or (seed is not None and body):
            raise ValueError(f"not a replay token: {text!r}")
        slice_ns = DEFAULT_SLICE_NS
        for option in options:
            if option.startswith("slice=") and option[6:].isdecimal():
                slice_ns = int(option[6:])
            elif option != "instrument":
                raise ValueError(f"not a replay token: {text!r} (option {option!r})")
        return Token(kind, seed, "instrument" in options, slice_ns, tuple(choices))


class Simulator(RunLoop, RunnableHost):
    """A host whose tasks are greenlets, whose time is virtual, and whose every choice is drawn from one sequence.

    `Simulator()` runs tasks first come, first served; `Simulator(seed=N)` draws who runs next from seed N.
    `instrument` makes every access to shared state a scheduling point. `replay` is a token (`token()`) of an earlier
    run, and decides all the rest. `source` replaces the seeded generator: a checker's door; implies `record`.
    `record` keeps the choices, so that `token()` lists them and no longer depends on the generator.
    """

    deterministic = True

    def __init__(
        self,
        *,
        seed: int | None = None,
        scheduler: str | None = None,
        replay: str | Token | None = None,
        instrument: bool = False,
        slice_ns: int = DEFAULT_SLICE_NS,
        source: ChoiceSource | None = None,
        record: bool = False,
    ) -> None:
        if replay is not None:
            if (
                seed is not None
                or scheduler is not None
                or instrument
                or slice_ns != DEFAULT_SLICE_NS
                or source is not None
            ):
                raise ValueError("a replay token decides seed, scheduler, instrumentation, slice and source")
            token = replay if isinstance(replay, Token) else Token.parse(replay)
        else:
            if scheduler is None:
                scheduler = FifoScheduler.name if seed is None and source is None else RandomScheduler.name
            if scheduler not in SCHEDULERS:
                raise ValueError(f"no scheduler {scheduler!r}; there are {', '.join(SCHEDULERS)}")
            if seed is not None and seed < 0:
                raise ValueError(f"seed {seed} is negative")
            token = Token(scheduler, seed or 0, instrument, slice_ns)
        if token.slice_ns < 1:
            raise ValueError(f"slice of {token.slice_ns} ns")
        if source is None:
            source = SeededSource(token.seed) if token.seed is not None else ReplaySource(list(token.choices))
        else:
            record = True
        self._token = token
        self.choices = Choices(source, record=record or token.seed is None)
        super().__init__(SCHEDULERS[token.scheduler](self.choices, token.slice_ns), token.instrument)

    def run(self, until: int | None = None) -> None:
        """Run until every task but daemons is done, `stop()`, or virtual time `until` (ns); may be called again.

        Raises what a task or a timer callback raised, or `Deadlock`; then every task has been ended. The error's notes
        say where it came from and which token replays the run.
        """
        try:
            self.run_loop(until)
        except BaseException as error:
            error.add_note(f"replay: {self.token()}")
            raise

    def token(self) -> str:
        """A short printable name of this run, for `Simulator(replay=...)`."""
        token = self._token
        if self.choices.log is not None:
            token = Token(token.scheduler, None, token.instrument, token.slice_ns, tuple(self.choices.log))
        return str(token)

    # --- Host ---------------------------------------------------------------------------------------------------------

    def cell(self, value: T, name: str) -> Cell[T]:
        return InstrumentedCell(self, value, name) if self.instrument else SimCell(value, name)

    def bitmap(self, name: str) -> Bitmap:
        return InstrumentedBitmap(self, name) if self.instrument else SimBitmap(name)

    def lock(self, name: str, rank: LockRank = LockRank.LEAF) -> Lock:
        return SimLock(self, name, rank)

    def rwsem(self, name: str, rank: LockRank = LockRank.LEAF) -> RwSem:
        return SimRwSem(self, name, rank)

    def wait_queue(self, name: str) -> WaitQueue:
        return SimWaitQueue(self, name)

    def timer(self, callback: Callable[[], None], name: str) -> Timer:
        return SimTimer(self.clock, callback, name)

    def spawn(self, function: Callable[[], None], name: str, *, daemon: bool = False) -> Task:
        task = SimTask(self, function, name, daemon, self.scheduler.slice_ns)
        self.add_task(task)
        return task

    def current(self) -> Task:
        return self.running

    def context(self) -> str:
        clock = self.clock
        if clock.in_interrupt:
            assert clock.expiring is not None
            return clock.expiring.alarm_name()
        return self.running.name

    def now_ns(self) -> int:
        return self.clock.now

    def choose(self, count: int, label: str) -> int:
        return self.choices.draw(count, label)

    def random_bytes(self, size: int) -> bytes:
        return self.choices.draw(1 << 8 * size, "random_bytes").to_bytes(size, "little") if size else b""

    def smp_mb(self) -> None:
        """Nothing to order: accesses take effect where they are made."""

    def smp_rmb(self) -> None:
        """As `smp_mb`."""

    def smp_wmb(self) -> None:
        """As `smp_mb`."""
