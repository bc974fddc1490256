"""The drop-in for transformers: the same class, the same checkpoints, `generate` under a policy."""

from dynkern.hf.modeling import OPTForCausalLM

__all__ = ["OPTForCausalLM"]
