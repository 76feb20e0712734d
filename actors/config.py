"""Settings of hosts and of the client that asks them."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, SecretStr

from store.config import Settings

__all__ = ["HostSettings", "WorkerSettings"]


class HostSettings(Settings):
    """`PERUSE_*` of the replica side. Read once, in the command or in the actor."""

    node: str = Field(
        default_factory=platform.node,
        description="name of this machine; with the slot it is the host's id, which placement hashes",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
    )
    host_idle_s: float = Field(
        60.0, ge=1, le=86_400, description="seconds without a read after which a replica is closed (its file stays)"
    )
    host_max_active: int = Field(
        20_000, ge=2, le=1_000_000, description="replicas open at once per host; less where the file limit is lower"
    )
    host_memory_mb: int = Field(
        1280,
        ge=8,
        le=1_048_576,
        description="memory of a host's open replicas, in MiB: connections and kept pages; beyond it some are closed",
    )
    host_disk_mb: int = Field(
        20_480,
        ge=16,
        le=67_108_864,
        description="disk of a host's replica files, in MiB; beyond it those closed longest ago are deleted",
    )
    host_file_days: float = Field(
        30.0, gt=0, le=3650, description="days without use after which a replica's file is deleted"
    )
    host_audit_s: float = Field(
        5.0, ge=0, le=86_400, description="seconds between audits of an idle replica against the primary; 0: none"
    )
    host_pulls: int = Field(4, ge=1, le=64, description="pulls at once per host, and its connections for them")
    host_seeds: int = Field(2, ge=1, le=64, description="seeds at once per host, and its connections for them")
    primary_seeds: int = Field(
        8, ge=0, le=1000, description="seeds at once on the primary, by all its hosts together; 0: no bound"
    )
    retention_h: float = Field(
        48.0,
        gt=0,
        le=87_600,
        description="hours that the change log is kept; a replica that slept longer is seeded anew",
    )
    wire_listen: str = Field(
        "", description="HOST:PORT to listen on for gateways of other machines; empty: a Unix socket only"
    )
    wire_secret: SecretStr = Field(
        SecretStr(""), description="shared secret of gateways and hosts, needed when wire_listen is set"
    )
    ray_address: str = Field("", description="address of a running Ray cluster; empty: our own, on this machine")

    def replicas_folder(self, data: Path) -> Path:
        return data / "replicas"


class WorkerSettings(Settings):
    """`PERUSE_*` of the workers that make pictures."""

    worker_jobs: int = Field(64, ge=1, le=10_000, description="jobs at once per worker")
    worker_connections: int = Field(8, ge=1, le=200, description="connections to the primary per worker")
    worker_pictures: int = Field(1, ge=1, le=64, description="processes per worker that read and finish pictures")
    worker_lease_s: float = Field(
        30.0, ge=2, le=3600, description="seconds after which the jobs of a worker that is gone are taken by another"
    )
    provider_jobs: str = Field(
        "64",
        description="jobs at once at each provider, by all workers together; with exceptions: 64,openai=16,builtin=2",
        pattern=r"^[1-9][0-9]{0,5}(,[a-z_]{1,32}=[0-9]{1,6})*$",
    )
    moderation: str = Field(
        "", description="package.module:function that is asked about every picture before it is kept; empty: none is"
    )

    def most_jobs(self, providers: Iterable[str]) -> dict[str, int]:
        """Jobs at once by provider."""
        usual, *others = self.provider_jobs.split(",")
        most = {name: int(usual) for name in providers}
        return most | {name: int(count) for name, _, count in (one.partition("=") for one in others)}
