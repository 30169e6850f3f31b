"""Liveness is the age of the last relist, readiness the first one."""

from __future__ import annotations

from tunesmith.servers.health import Health

STALE_SECONDS = 150.0


def test_a_replica_that_waits_to_lead_is_alive_and_not_ready() -> None:
    health = Health(STALE_SECONDS, lambda: 1e9)
    assert (health.alive(), health.ready()) == (True, False)


def test_a_leader_must_complete_its_first_relist_and_go_on_completing_them() -> None:
    seconds, synced = 0.0, None
    health = Health(STALE_SECONDS, lambda: seconds)
    health.lead(lambda: synced)
    seconds = STALE_SECONDS - 1
    assert (health.alive(), health.ready()) == (True, False)
    seconds = STALE_SECONDS
    assert not health.alive()
    synced = STALE_SECONDS
    assert (health.alive(), health.ready()) == (True, True)
    seconds = 2 * STALE_SECONDS
    assert (health.alive(), health.ready()) == (False, True)
