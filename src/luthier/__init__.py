"""Luthier adapts pretrained models to your own documents and tasks, with evidence."""

__version__ = "0.1.0"
