"""Objects: the bytes of pictures, kept beside Postgres and named by generated keys.

keys.py      generated keys; nothing a user typed ever becomes part of a path
local.py     objects as files in one folder, written once and durably
pictures.py  what bytes are: format, size, thumbnail and placeholder, read in a process of its own
"""
