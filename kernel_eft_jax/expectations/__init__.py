"""Gaussian expectations of several inputs at once: Hermite modes of pairs, and products of four activations."""
