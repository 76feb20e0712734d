"""Replicas: who holds them, how they keep up, how they are asked.

client        ReplicaClient: what the gateway asks                    placement   user → host
wire          frames, and both ends of a connection                   host        a host: the wire's other end
activation    the replicas of a host: seeding, active, passive        folder      their files
replica       one user's SQLite file; schema: its tables; queries: its answers
sync          pulls and sweeps; seed: a replica from nothing
cluster       Ray: starts hosts and keeps them                        metrics, config, errors
"""

from actors.client import Question, ReplicaClient
from actors.errors import Behind, CallError, Overloaded, ReplicaError, Retryable, Seeding
from actors.messages import AuditReport, Outcome, PageHead, ReplicaInfo
from actors.metrics import BUCKETS_S, HostStats
from actors.pages import Page
from actors.schema import user_version
from actors.seed import seed as seed_file

__all__ = [
    # what the gateway asks with
    "ReplicaClient",
    "Question",
    "seed_file",
    "Outcome",
    "Page",
    "PageHead",
    "user_version",
    "AuditReport",
    "ReplicaInfo",
    # what a host says of itself
    "BUCKETS_S",
    "HostStats",
    # what can be in the way
    "Behind",
    "CallError",
    "Overloaded",
    "ReplicaError",
    "Retryable",
    "Seeding",
]
