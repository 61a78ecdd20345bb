"""rlvr: a readable laboratory for reinforcement learning with verifiable rewards (GRPO and advantage shaping)."""
