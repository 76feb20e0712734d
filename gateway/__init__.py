"""The HTTP side, and the commands.

cli          the command `peruse`; importing: prompts to a gallery; supervisor: all parts on one machine
app          a gateway and what it is made of; routes: every URL; middleware: what all requests share
freshness    reads and how fresh they are; auth, jwks: who is asking
payloads     bodies of requests; errors: problems; metrics, config
"""
