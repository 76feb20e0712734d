"""Providers: one file per maker of pictures.

builtin.py  draws by itself: no model, no network, same inputs, same bytes
"""
