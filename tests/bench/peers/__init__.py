"""What a hot read is compared with: the same page of 50 images, from processes of their own.

systems             the peers: how each is started, what it needs
needs               where the tools are, and how to get them when they are not
handlers            aiohttp: bare, before Postgres, before Redis
on_ray              one Ray actor per user; Ray Serve
durable_object.js   the source design: a Durable Object with SQLite, on workerd

None of them checks a token, so each does less than the gateway that it is held against.
"""
