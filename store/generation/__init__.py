"""Generation: how a prompt becomes a picture.

models.py     the models and what each can do; limits.py: the checks, and a request split into calls
wanted.py     what a request may say, and how the rest is filled in; originals.py: what it may start from
catalog.py    what this installation can draw with; planning.py: from a request to jobs; remixing.py, funds.py
creating.py   jobs from a plan; canceling.py; states.py: how they are told; params.py: what a job keeps
pricing.py    credits and dollars, from prices.toml and an operator's file
retries.py    which errors are tried again, and when
errors.py     every error that making a picture can end in
jobs.py       who has which job: claims, leases, fences; attempts.py: what was asked of providers for it
params.py     a job's parameters; requests.py: the calls that they mean
runner.py     many jobs at once: the loop; work.py: one of them; writing.py: only while it is ours
calling.py    one call until it has pictures; delivering.py: their objects; settling.py: the end of a job
moderation.py who looks at a picture first; callbacks.py: where providers may call; tally.py: what is counted
config.py     where the providers are, and our keys there
providers/    who makes the picture: one file per provider
scenes/       what the builtin provider can draw
"""
