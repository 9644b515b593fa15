"""The nouns of the house."""
