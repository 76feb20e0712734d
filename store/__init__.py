"""The primary and everything durable: Postgres, objects, the rules of money and ownership.

primary      pools of connections, and the one way to write
embedded     a Postgres of our own, as a child process
tables       the tables, and which columns replicate
migrations   how the tables come to be; triggers.sql: change capture
changes      what changed for a user since a cursor; epoch: bookmarks and their order
documents    rows as clients see them; gallery: the list rule; reads: pages from the primary
credits      amounts, grants and the ledger; money_audit: whether all of it adds up; jobs.sql: how it moves
images, users, api_keys, hosts, accounts, templates, model_settings, own_keys    one module per thing that is written
webhooks     who is told of what; webhook_log, webhook_sending: how it went, and how it gets there
idempotency  a request that is sent again is answered again
objects      image bytes; generation: how images are made
priority     whom the kernel runs first
ids, clock, logs, errors, config  the small things everybody needs
"""
