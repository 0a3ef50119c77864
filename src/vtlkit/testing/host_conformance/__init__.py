"""What every host must do: one check per promise of `vtlkit.host.api`. Every host passes all of them.

Each check takes a fresh host, spawns its tasks, runs them and raises AssertionError if the promise is broken. Run each
of `HOST_CHECKS` on your host; on one that interleaves tasks by chance, many times.
"""

from __future__ import annotations

from vtlkit.testing.host_conformance.cells import (
    check_acquire_release,
    check_bitmap,
    check_cmpxchg,
    check_fetch_add,
    check_xchg,
)
from vtlkit.testing.host_conformance.locks import (
    check_ending_with_lock,
    check_lock_excludes,
    check_lock_order,
    check_rwsem_readers_share,
    check_rwsem_writer_excludes,
    check_rwsem_writer_goes_first,
    check_try_acquire,
)
from vtlkit.testing.host_conformance.running import HostCheck
from vtlkit.testing.host_conformance.sleeping import (
    check_deadline,
    check_no_lost_wake,
    check_ping_pong,
    check_signals,
    check_wake_all,
    check_wake_result,
)
from vtlkit.testing.host_conformance.srcu import (
    check_srcu_ignores_later_readers,
    check_srcu_nests,
    check_srcu_waits_for_overtaken_readers,
    check_srcu_waits_for_readers,
)
from vtlkit.testing.host_conformance.tasks import (
    check_choices,
    check_daemon,
    check_exception,
    check_join,
    check_run_until,
    check_stop,
)
from vtlkit.testing.host_conformance.timers import check_interrupt_context, check_periodic_timer, check_timers

HOST_CHECKS: tuple[HostCheck, ...] = (
    check_fetch_add,
    check_cmpxchg,
    check_xchg,
    check_acquire_release,
    check_bitmap,
    check_lock_excludes,
    check_try_acquire,
    check_lock_order,
    check_ending_with_lock,
    check_rwsem_readers_share,
    check_rwsem_writer_excludes,
    check_rwsem_writer_goes_first,
    check_srcu_waits_for_readers,
    check_srcu_waits_for_overtaken_readers,
    check_srcu_nests,
    check_srcu_ignores_later_readers,
    check_no_lost_wake,
    check_ping_pong,
    check_wake_all,
    check_wake_result,
    check_deadline,
    check_signals,
    check_timers,
    check_periodic_timer,
    check_interrupt_context,
    check_join,
    check_exception,
    check_daemon,
    check_stop,
    check_run_until,
    check_choices,
)
"""Every check of this module."""

__all__ = ["HOST_CHECKS", "HostCheck"]
