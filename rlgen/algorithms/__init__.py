"""How rewards become updates of the policy. The loops are in `grpo` (ours) and `trl` (TRL's GRPOTrainer)."""
