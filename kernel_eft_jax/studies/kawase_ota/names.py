"""The names of what is compared, the same in all figures and tables; their order gives each its style."""

NETWORKS = "networks"
TOWER = "HermiteTower"  # exact at order 1/n
G_ONLY = "GOnly, converged"
RULE = "GOnly, 32-point rule"  # as published
SIGMA = "SigmaKernel"
SOURCE = "GOnly, sources alone"
PUBLISHED_NETWORKS = "published networks"
ORDER = (NETWORKS, TOWER, G_ONLY, RULE, SIGMA, SOURCE, PUBLISHED_NETWORKS)
