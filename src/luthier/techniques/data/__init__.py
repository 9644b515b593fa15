"""Techniques of this room: data."""
