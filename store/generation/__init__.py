"""Generation: how a prompt becomes a picture.

providers/  who makes the picture: one file per provider
scenes/     what the builtin provider can draw
"""
