"""The primary and everything durable: Postgres, objects, the rules of money and ownership.

primary      pools of connections, and the one way to write
embedded     a Postgres of our own, as a child process
tables       the tables, and which columns replicate
migrations   how the tables come to be; triggers.sql: change capture
changes      what changed for a user since a cursor; epoch: bookmarks and their order
documents    rows as clients see them; gallery: the list rule; reads: pages from the primary
images, users, api_keys, hosts    one module per thing that is written
idempotency  a request that is sent again is answered again
objects      image bytes; generation: how images are made
ids, clock, logs, errors, config  the small things everybody needs
"""
