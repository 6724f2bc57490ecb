"""Studies: published work redone as a user would write it, with the public names of this package and its figures.

Closures and activations of the study's own also use packed kernels, `kernel_eft_jax.pairs`, and
`kernel_eft_jax.activations.Expansion`.
"""
