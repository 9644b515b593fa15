"""Techniques of this room: heads and bodies of models."""
