"""The HTTP side, and the commands.

cli          the command `peruse`; importing: prompts to a gallery; operating, operators: what operators ask
supervisor   all parts on one machine; process: a child that is kept; server: one gateway; hot: the short way to a route
app          a gateway and what it is made of; routes: every URL; middleware: what all requests share
freshness    reads and how fresh they are; auth, jwks: who is asking
generating   generations made and told; following: who waits for them, or listens
payloads     bodies of requests; page: the response of a read; errors: problems; metrics, config
"""
