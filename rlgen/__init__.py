"""Reinforcement learning for crystal-structure generators."""

import os

__version__ = "0.1.0"

# Spinning OpenMP threads stall two-core machines for minutes when a neighbour is busy. This must be set before torch
# or numpy load their runtimes, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
