"""Techniques of this room: retrieval."""
