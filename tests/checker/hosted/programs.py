"""Tasks that share something: what they can end in must differ where a part of the checker is missing."""

from __future__ import annotations

from vtlkit.host.api import Host


def under_a_lock(host: Host) -> None:
    """One task enters twice, another looks."""
    lock = host.lock("lock")
    shared: list[int] = []

    def writer() -> None:
        for number in range(2):
            with lock:
                shared.append(number)

    def reader() -> int:
        with lock:
            return len(shared)

    host.spawn(writer, "writer")
    host.spawn(reader, "reader")  # type: ignore[arg-type]


def put_back(host: Host) -> None:
    """Data that is in the end what it was."""
    lock = host.lock("lock")
    shared = [0]

    def writer() -> None:
        for value in (1, 0):
            with lock:
                shared[0] = value

    def reader() -> int:
        with lock:
            return shared[0]

    host.spawn(writer, "writer")
    host.spawn(reader, "reader")  # type: ignore[arg-type]


def counting(host: Host) -> None:
    """Fails behind a loop that reads the same each time."""
    cell = host.cell(0, "cell")

    def reader() -> None:
        for _ in range(6):
            cell.load()
        raise AssertionError("behind the loop")

    host.spawn(reader, "reader")
    host.spawn(lambda: cell.store(1), "writer")
