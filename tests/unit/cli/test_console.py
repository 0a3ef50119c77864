"""The guest's output arrives whole and in order, waits for a slow reader, and gives up on one that has gone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vtlkit.cli.console import GuestOutput


def never() -> None:
    pytest.fail("the output failed")


def test_bytes_arrive_as_they_are() -> None:
    reader, writer = os.pipe()
    output = GuestOutput(writer, never)
    data = bytes(range(256)) * 20
    output.write(data)
    output.write(b"")
    assert os.read(reader, 10000) == data
    starts = [output.at_line_start]
    output.write(b"line\n")
    starts.append(output.at_line_start)
    assert starts == [False, True]
    os.close(reader)
    os.close(writer)


def test_a_reader_that_has_gone_is_told_once() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    failures: list[str] = []
    output = GuestOutput(writer, lambda: failures.append("gone"))
    output.write(b"one")
    output.write(b"two")
    assert failures == ["gone"]
    assert output.reader_gone
    os.close(writer)


def test_another_failure_is_no_reader_that_has_gone(tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    failures: list[str] = []
    output = GuestOutput(descriptor, lambda: failures.append("full"))
    output.write(b"one")
    assert output.error is not None
    assert (output.error.errno, output.reader_gone, failures) == (errno.ENOSPC, False, ["full"])
    os.close(descriptor)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_is_not_waited_for_once_the_run_stops(blocking: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(writer, blocking)
    output = GuestOutput(writer, never)
    output.stopping = True
    output.write(b"lost")
    assert output.error is None
    os.close(reader)
    os.close(writer)
