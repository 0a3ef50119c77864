"""What all worlds of one program share: what has been learnt of its words, and the tree of what its tasks do."""

from __future__ import annotations

from vtlkit.checker.hosted.trie import Point
from vtlkit.checker.hosted.words import Accesses


class Book:
    """`model` decides which barriers are operations."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.fences = model != "sc"
        self.weak = model not in ("sc", "tso")
        self.locked_orders = model == "tso"
        """An atomic operation is a full barrier."""
        self.causal = False
        """Locks and objects carry what happened before: tasks share more than words."""
        self.rounds = 2
        """A task that has gone round so often without news is followed no further; 0: it always is."""
        self.accesses = Accesses()
        self.queues: dict[str, list[str]] = {}
        """Queue -> tasks that may be in it."""
        self.timers: set[str] = set()
        self.walks = False
        """Words hold objects that were there before the tasks began: these have to be numbered."""
        self.makes = False
        """Words hold objects that tasks make: these are named by what a task was told before."""
        self._roots: dict[str, Point] = {}

    def root(self, number: int, task: str) -> Point:
        """Where a task begins."""
        return self._roots.setdefault(task, Point(number, task, None, None))

    def forget(self) -> None:
        """The search begins anew: what has been learnt stays, the tree goes."""
        self._roots.clear()
        self.accesses.learnt = None

    def share_data(self) -> None:
        """Tasks change what others can reach. Raises Again."""
        self.causal = True
        self.accesses.learn("tasks share more than words of the host")

    def enter_queue(self, queue: str, task: str) -> None:
        """A task waits in a queue. Raises Again if that is new."""
        tasks = self.queues.setdefault(queue, [])
        if task not in tasks:
            tasks.append(task)
            tasks.sort()
            if not self.accesses.probing:
                self.accesses.learn(f"'{task}' waits in '{queue}'")

    def use_timer(self, name: str) -> None:
        """A timer is started, and so is a thread. Raises Again if that is new."""
        if name not in self.timers:
            self.timers.add(name)
            self.accesses.learn(f"timer '{name}' is used")

    def need_walk(self) -> None:
        """A word is to hold an object that has no name. Raises Again if names may help."""
        if not self.walks:
            self.walks = True
            self.accesses.learn("words hold objects")

    def make(self) -> None:
        """A word is to hold an object that a task has made. Raises Again if that is new."""
        if not self.makes:
            self.makes = True
            self.accesses.learn("tasks make objects that words hold")
