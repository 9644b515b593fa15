"""Techniques of this room: evaluation."""
