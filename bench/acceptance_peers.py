"""transformers' own decoding of the same shape: its eager loop, and a static cache compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from dynkern.models.spec import DecoderSpec


def missing() -> str | None:
    """Why transformers cannot run here, or None."""
    try:
        from transformers import OPTForCausalLM  # noqa: F401
    except Exception as error:  # a broken installation raises anything
        return f"transformers: {type(error).__name__}: {error}".splitlines()[0]
    return None


class HuggingFace:
    """A random OPT of the same sizes, to be timed."""

    def __init__(self, spec: DecoderSpec, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import OPTConfig, OPTForCausalLM

        config = OPTConfig(
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            num_hidden_layers=spec.num_layers,
            num_attention_heads=spec.num_heads,
            ffn_dim=spec.ffn_size,
            max_position_embeddings=spec.max_positions,
            word_embed_proj_dim=spec.embed_size,
        )
        held = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                self.model = OPTForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(held)
        self.device = device

    def ways(self, prompts: list[tuple[int, ...]], passes: int) -> dict[str, Callable[[], float]]:
        """Seconds per decode pass: "hf eager", and "hf static" (compiled on a GPU)."""
        ids = torch.tensor(prompts, device=self.device)
        tokens = passes + 1
        options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}

        def timed(run: Callable[[], Any]) -> float:
            with torch.inference_mode():
                self._wait()
                started = time.perf_counter()
                run()
                self._wait()
                return time.perf_counter() - started

        def way(**more: Any) -> Callable[[], float]:
            def run() -> float:
                whole = timed(lambda: self.model.generate(ids, **options, **more))
                prefill = timed(lambda: self.model(ids).logits[:, -1].argmax(-1))
                return max(whole - prefill, 1e-9) / passes

            return run

        return {"hf eager": way(), "hf static": way(cache_implementation="static")}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
