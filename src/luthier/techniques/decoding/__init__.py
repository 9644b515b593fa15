"""Techniques of this room: decoding."""
