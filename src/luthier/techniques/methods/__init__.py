"""Techniques of this room: methods."""
