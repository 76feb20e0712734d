"""Speed, side by side: one run, one machine, nothing pinned. `python -m tests.bench [--quick]`, or `make bench`.

__main__    the run: what is measured, in which order
plan        how much of it, quick or full
runs        a folder, a voice, an end in order; where results lie
process     a child process: its lines, its CPU and memory, its end
instance    a served instance and its import
peers/      what a gallery is compared with, each in its own process
gallery     users and images by SQL
client      reads over HTTP, and a scrape of /metrics
load        wrk
openloop    reads at moments fixed beforehand
reads       the hot read, against its peers
standings   who read how fast, and the ratios
writes      commit → visible, one write at a time
arrivals    write → seen, 200 writes a second; reads that wait for their bookmark
uploads     uploads beside reads, a large one, many at once; uploader: who uploads; lag: a gateway that times its loop
seeds       a replica from nothing
cold        first reads: of a large gallery, of a closed replica
pages       deep and filtered pages of a large gallery
sweeps      what looking for changes costs the primary
memory      what an active user takes
zipf        ten times more users than a host has memory for
result      a line of the table and its goal
machine     what it ran on
report      table and bench.json
chart       pictures
gate        `--quick` against the last full run
readme      the README's table
growth      how cost grows: `python -m tests.bench.growth`, or `make bench-growth`
growth_steps, curves    its steps; a curve, its law and its knee
capacity    the figures of deploy/CAPACITY.md
"""
