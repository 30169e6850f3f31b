"""The operator's settings, from environment variables `TUNESMITH_<NAME>`: the chart sets them, a developer's shell may."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from tunesmith.core.objects import Config, Images, Timing

PREFIX = "TUNESMITH_"
CA_LIMIT = 64 * 1024


@dataclass(frozen=True)
class ProgressSettings:
    """The progress endpoint; without a certificate there is none."""

    address: str = "0.0.0.0"
    port: int = 8443
    url: str = ""
    """`https://host:port` as training pods reach it."""
    certificate: str = ""
    key: str = ""
    ca: str = ""
    """Paths of PEM files; `ca` signed `certificate` and is handed to the training pods."""

    @property
    def enabled(self) -> bool:
        """Whether the endpoint is served."""
        return bool(self.certificate)


@dataclass(frozen=True)
class LeaseSettings:
    """Leader election; off for a single process at a developer's desk."""

    enabled: bool = True
    name: str = "tunesmith-leader"
    namespace: str = "default"
    identity: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """The pod's name in a cluster, so that a restarted container takes its own lease back at once."""
    duration_seconds: int = 10
    """Another takes over when it has seen no renewal for so long; with its own retries and first relist, within 15 s."""
    deadline_seconds: int = 6
    """The leader stops when it has not renewed for so long: well before another takes over."""
    retry_seconds: int = 2


@dataclass(frozen=True)
class Settings:
    """All of them."""

    images: Images = field(default_factory=lambda: Images("", ""))
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    """Namespaces served; empty: all."""
    health_address: str = "0.0.0.0"
    health_port: int = 8080
    """Serves /healthz, /readyz and /metrics."""
    resync_seconds: float = 60.0
    stale_seconds: float = 150.0
    """Without a complete relist for so long the operator is not alive."""
    workers: int = 4
    log_level: str = "INFO"
    network_policies: bool = True
    """Whether served models get a NetworkPolicy."""
    stage_policies: bool = True
    """Whether the stages of an object get one."""
    timing: Timing = field(default_factory=Timing)
    progress: ProgressSettings = ProgressSettings()
    lease: LeaseSettings = field(default_factory=LeaseSettings)

    def config(self) -> Config:
        """What the pure core needs of the settings."""
        return Config(
            images=self.images,
            image_pull_policy=self.image_pull_policy,
            image_pull_secrets=self.image_pull_secrets,
            progress_url=self.progress.url if self.progress.enabled else "",
            progress_ca=_read_ca(self.progress.ca) if self.progress.ca else "",
            progress_port=self.progress.port,
            network_policies=self.network_policies,
            stage_policies=self.stage_policies,
            timing=self.timing,
        )


def _read_ca(path: str) -> str:
    """The CA's certificates. Every training pod carries them in an annotation, and there is no room for a whole trust store beside its orders."""
    text = Path(path).read_text()
    if len(text) > CA_LIMIT:
        raise ValueError(f"{path} has {len(text)} characters, at most {CA_LIMIT} are taken: give the CA of the progress certificate alone")
    return text


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings that the environment asks for; what it does not name keeps its default."""
    env = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)}
    default = Settings()
    return Settings(
        images=Images(env.get("TRAINER_IMAGE", ""), env.get("SERVING_IMAGE", "")),
        image_pull_policy=env.get("IMAGE_PULL_POLICY", default.image_pull_policy),
        image_pull_secrets=_words(env.get("IMAGE_PULL_SECRETS", "")),
        namespaces=_words(env.get("NAMESPACES", "")),
        health_address=env.get("HEALTH_ADDRESS", default.health_address),
        health_port=int(env.get("HEALTH_PORT", default.health_port)),
        resync_seconds=float(env.get("RESYNC_SECONDS", default.resync_seconds)),
        stale_seconds=float(env.get("STALE_SECONDS", default.stale_seconds)),
        workers=int(env.get("WORKERS", default.workers)),
        log_level=env.get("LOG_LEVEL", default.log_level),
        network_policies=env.get("NETWORK_POLICIES", "true").lower() == "true",
        stage_policies=env.get("STAGE_POLICIES", "true").lower() == "true",
        timing=_timing(env, default.timing),
        progress=_progress(env, default.progress),
        lease=_lease(env, default.lease),
    )


def _timing(env: Mapping[str, str], default: Timing) -> Timing:
    def seconds(name: str, usual: timedelta) -> timedelta:
        return timedelta(seconds=float(env[name])) if name in env else usual

    return Timing(
        backoff=seconds("BACKOFF_SECONDS", default.backoff),
        backoff_limit=seconds("BACKOFF_LIMIT_SECONDS", default.backoff_limit),
        drain=seconds("DRAIN_SECONDS", default.drain),
    )


def _progress(env: Mapping[str, str], default: ProgressSettings) -> ProgressSettings:
    return ProgressSettings(
        address=env.get("PROGRESS_ADDRESS", default.address),
        port=int(env.get("PROGRESS_PORT", default.port)),
        url=env.get("PROGRESS_URL", default.url).rstrip("/"),
        certificate=env.get("PROGRESS_CERTIFICATE", default.certificate),
        key=env.get("PROGRESS_KEY", default.key),
        ca=env.get("PROGRESS_CA", default.ca),
    )


def _lease(env: Mapping[str, str], default: LeaseSettings) -> LeaseSettings:
    return LeaseSettings(
        enabled=env.get("LEADER_ELECTION", "true").lower() == "true",
        name=env.get("LEASE_NAME", default.name),
        namespace=env.get("LEASE_NAMESPACE", default.namespace),
        identity=env.get("IDENTITY", default.identity),
        duration_seconds=int(env.get("LEASE_DURATION_SECONDS", default.duration_seconds)),
        deadline_seconds=int(env.get("LEASE_DEADLINE_SECONDS", default.deadline_seconds)),
        retry_seconds=int(env.get("LEASE_RETRY_SECONDS", default.retry_seconds)),
    )


def _words(text: str) -> tuple[str, ...]:
    """The words of a list separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
