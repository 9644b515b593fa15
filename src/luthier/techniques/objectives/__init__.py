"""Techniques of this room: objectives."""
