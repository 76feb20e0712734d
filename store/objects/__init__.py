"""Objects: the bytes of pictures, kept beside Postgres and named by generated keys.

keys.py            generated keys; nothing a user typed ever becomes part of a path
prefix.py          the secret behind the owner tags in keys
local.py           objects as files in one folder, written once and durably
pictures.py        what bytes are: format, size, thumbnail and placeholder
picture_worker.py  the process that reads one picture at a time, within limits
thumbs.py          thumbnails and placeholders of decoded pictures
"""
