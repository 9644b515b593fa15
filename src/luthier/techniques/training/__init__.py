"""Techniques of this room: training."""
