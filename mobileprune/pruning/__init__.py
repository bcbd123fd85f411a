"""Pruning along depth, width and resolution: analyse a network, rank its blocks, prune it, rebuild it from a recipe."""
