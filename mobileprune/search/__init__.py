"""The search: surrogates of accuracy and latency, the probe plan and the solver. Needs numpy and scipy only."""
