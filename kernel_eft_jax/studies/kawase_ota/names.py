"""What is compared, under one name and in one style in all figures and tables."""

NETWORKS = "networks"
TOWER = "Hermite tower"  # exact at order 1/n
G_ONLY = "G-only, converged"
RULE = "G-only, 32-point rule"  # as published
SIGMA = "sigma-kernel"
SOURCE = "G-only, sources alone"
PUBLISHED_NETWORKS = "published networks"
ORDER = (NETWORKS, TOWER, G_ONLY, RULE, SIGMA, SOURCE, PUBLISHED_NETWORKS)
