"""Speed, side by side: one run, one machine, nothing pinned. `python -m tests.bench [--quick]`, or `make bench`.

__main__    the run: what is measured, in which order
plan        how much of it, quick or full
process     a child process: its lines, its CPU, its end
instance    a served instance and its import
peers       what a gallery is compared with, each in its own process
gallery     users and images by SQL
client      reads over HTTP, and a scrape of /metrics
load        wrk
reads       the hot read, against its peers
writes      commit → visible, one write at a time
arrivals    write → seen, 200 writes a second; reads that wait for their bookmark
seeds       a replica from nothing
cold        first reads: of a large gallery, of a closed replica
sweeps      what looking for changes costs the primary
memory      what an active user takes
result      a line of the table and its goal
machine     what it ran on
report      table, bench.json, bench.png
"""
