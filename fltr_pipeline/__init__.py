"""Turns uploaded documents into searchable embeddings, and charges exactly what the work cost."""

__version__ = "0.1.0"
