"""Settings come from the environment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tunesmith.core.objects import Timing
from tunesmith.settings import ProgressSettings, Settings, from_environment


def test_an_empty_environment_means_the_defaults() -> None:
    chosen = from_environment({"HOME": "/root", "KUBECONFIG": "/nowhere"})
    assert chosen.resync_seconds == Settings().resync_seconds
    assert (chosen.namespaces, chosen.progress.enabled, chosen.lease.enabled) == ((), False, True)
    assert chosen.config().timing == Timing(backoff=timedelta(seconds=5), backoff_limit=timedelta(minutes=5), drain=timedelta(seconds=30))


def test_each_variable_is_taken(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_text("PEM")
    chosen = from_environment(
        {
            "TUNESMITH_TRAINER_IMAGE": "trainer:1",
            "TUNESMITH_SERVING_IMAGE": "serving:1",
            "TUNESMITH_NAMESPACES": "team-a, team-b,",
            "TUNESMITH_WORKERS": "9",
            "TUNESMITH_LEADER_ELECTION": "false",
            "TUNESMITH_BACKOFF_SECONDS": "0.5",
            "TUNESMITH_BACKOFF_LIMIT_SECONDS": "2",
            "TUNESMITH_DRAIN_SECONDS": "6",
            "TUNESMITH_PROGRESS_URL": "https://operator:8443/",
            "TUNESMITH_PROGRESS_CERTIFICATE": "/tls/tls.crt",
            "TUNESMITH_PROGRESS_CA": str(ca),
        }
    )
    assert (chosen.namespaces, chosen.workers, chosen.lease.enabled) == (("team-a", "team-b"), 9, False)
    config = chosen.config()
    assert config.timing == Timing(backoff=timedelta(seconds=0.5), backoff_limit=timedelta(seconds=2), drain=timedelta(seconds=6))
    assert (config.images.trainer, config.progress_url, config.progress_ca) == ("trainer:1", "https://operator:8443", "PEM")


def test_without_a_certificate_no_pod_is_told_to_report() -> None:
    assert from_environment({"TUNESMITH_PROGRESS_URL": "https://operator:8443"}).config().progress_url == ""


def test_a_whole_trust_store_as_the_progress_ca_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    path.write_text("PEM\n" * 20_000)
    with pytest.raises(ValueError, match="at most 65536 are taken: give the CA of the progress certificate alone"):
        Settings(progress=ProgressSettings(ca=str(path))).config()
