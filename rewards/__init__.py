"""Rewards: one small file each, the expression that combines them, and the contract they keep."""
