"""The drop-in for transformers: the same class, the same checkpoints, `generate` under a policy."""

from dynkern.hf.modeling import OPTForCausalLM
from dynkern.hf.swap import accelerate

__all__ = ["OPTForCausalLM", "accelerate"]
