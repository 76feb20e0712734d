"""Replicas: who holds them, how they keep up, how they are asked.

client        ReplicaClient: what the gateway asks                    placement   user → host
membership    the hosts as a gateway knows them                       watching    whom a gateway listens to
pages         what a gateway keeps; slots: while that is true          messages    what both ends say; wire: frames
host          a host's life; handler: what it does with requests      cluster     Ray: starts hosts and keeps them
replicas      the replicas of a host, as its callers see them         activation  their life; budget, seeding, janitor
replica       one user's SQLite file; schema: its tables; queries: its answers; folder: the files
sync          pulls and sweeps; active: an open replica; seed: a replica from nothing; watches: who hears of it
audit         a replica against the primary                           health      the pulse of a host's own sync
worker        a worker's life; worker_stats: what it says of itself
"""

from actors.client import Question, ReplicaClient
from actors.errors import Behind, CallError, Overloaded, ReplicaError, Retryable, Seeding
from actors.messages import AuditReport, Outcome, PageHead, ReplicaInfo, Terms
from actors.metrics import BUCKETS_S, HostStats
from actors.pages import Page
from actors.schema import user_version
from actors.seed import seed as seed_file
from actors.worker_stats import WorkerStats, read_worker_stats

__all__ = [
    # what the gateway asks with
    "ReplicaClient",
    "Question",
    "Terms",
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
    # and a worker
    "WorkerStats",
    "read_worker_stats",
    # what can be in the way
    "Behind",
    "CallError",
    "Overloaded",
    "ReplicaError",
    "Retryable",
    "Seeding",
]
