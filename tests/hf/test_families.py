"""Every OPT there is, in small: LLM and the drop-in from its checkpoint, against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

import dynkern
from dynkern.llm import LLM
from support.errors import one_line_error
from support.families import FAMILIES
from support.greedy import assert_same_greedy, new_tokens
from support.opt import random_prompts, tiny_opt
from support.tolerances import assert_logits_close
from support.twins import PAD, padded

NEW_TOKENS = 6
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def prompts_of(module) -> list[list[int]]:
    return random_prompts(4, seed=5, longest=12, vocab_size=module.config.vocab_size)


def truth_of(module, prompts: list[list[int]]) -> Tensor:
    """Logits of the last tokens, by transformers in float64, from the weights as they are."""
    double = transformers.OPTForCausalLM(module.config).double().eval()
    double.load_state_dict(module.state_dict())
    with torch.no_grad():
        return torch.stack([double(torch.tensor([p])).logits[0, -1] for p in prompts])


def logits_of_llm(llm: LLM, prompts: list[list[int]]) -> Tensor:
    with llm.engine.stepping():
        executor = llm.engine.executor
        return executor.head.logits(executor.prefill(prompts).hidden, None).clone()


def logits_of_drop_in(model, prompts: list[list[int]]) -> Tensor:
    out = model.generate(
        **padded(prompts), max_new_tokens=1, return_dict_in_generate=True, output_logits=True
    )
    return out.logits[0]


def check(directory: Path, module, dtype: str = "float32") -> None:
    """LLM and the drop-in from `directory`, in `dtype`: logits and greedy ids of `module`, which is
    transformers' with the checkpoint's weights.
    """
    prompts, kind = prompts_of(module), DTYPES[dtype]
    truth = truth_of(module, prompts)
    llm = LLM(directory, dtype=dtype)
    assert_logits_close(logits_of_llm(llm, prompts), truth, kind)
    ours = dynkern.OPTForCausalLM.from_pretrained(directory, dtype=kind)
    assert ours.dtype == kind
    assert_logits_close(logits_of_drop_in(ours, prompts), truth, kind)
    if dtype != "float32":
        return
    module = module.float()
    settings = {"max_new_tokens": NEW_TOKENS, "eos_token_id": 2}
    inputs = padded(prompts)
    width = inputs["input_ids"].shape[1]
    want = new_tokens(module.generate(**inputs, **settings), width, [2])
    assert_same_greedy(
        module, prompts, new_tokens(ours.generate(**inputs, **settings), width, [2]), want
    )
    assert_same_greedy(
        module,
        prompts,
        [c.token_ids for c in llm.generate(prompts, max_new_tokens=NEW_TOKENS)],
        want,
    )
    routed = ours.generate(**inputs, **settings, policy="uniform:1")
    assert new_tokens(routed, width, [2]) == [
        c.token_ids for c in llm.generate(prompts, "uniform:1", max_new_tokens=NEW_TOKENS)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, family):
    module = tiny_opt(seed=2, **FAMILIES[family])
    module.save_pretrained(tmp_path)
    check(tmp_path, module)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["350m", "6.7b", "galactica-1.3b", "untied head"])
def test_half_checkpoints(tmp_path, family, stored):
    module = tiny_opt(seed=2, **FAMILIES[family]).to(DTYPES[stored])
    module.save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16", stored):
        check(tmp_path, module, dtype)
    # without a word about dtypes: LLM takes bfloat16 for what a CPU has no fast arithmetic for
    prompts, truth = prompts_of(module), truth_of(module, prompts_of(module))
    assert_logits_close(logits_of_llm(LLM(tmp_path), prompts), truth, torch.bfloat16)
    ours = dynkern.OPTForCausalLM.from_pretrained(tmp_path)
    assert ours.dtype in (DTYPES[stored], torch.float32)
    assert_logits_close(logits_of_drop_in(ours, prompts), truth, ours.dtype)


# -- how it lies on disk ---------------------------------------------------------------------------


def sharded_safetensors(directory: Path, module) -> None:
    module.save_pretrained(directory, max_shard_size="80KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 2


def single_bin(directory: Path, module) -> None:
    module.config.save_pretrained(directory)
    # the keys of the first releases: with the tied head, and without "model."
    torch.save(module.state_dict(), directory / "pytorch_model.bin")


def sharded_bin(directory: Path, module) -> None:
    module.config.save_pretrained(directory)
    shards: dict[str, dict[str, Tensor]] = {}
    for index, (name, tensor) in enumerate(module.state_dict().items()):
        shards.setdefault(f"pytorch_model-{index % 3 + 1:05}-of-00003.bin", {})[name] = tensor
    for file, tensors in shards.items():
        torch.save(tensors, directory / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("save", [sharded_safetensors, single_bin, sharded_bin])
@pytest.mark.parametrize("family", ["350m", "galactica-1.3b", "untied head"])
def test_files(tmp_path, family, save: Callable):
    module = tiny_opt(seed=2, **FAMILIES[family])
    save(tmp_path, module)
    check(tmp_path, module)


class Code:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [single_bin, sharded_bin])
def test_code_in_a_bin_file_does_not_run(tmp_path, save):
    save(tmp_path, tiny_opt())
    path, ran = sorted(tmp_path.glob("*.bin"))[-1], tmp_path / "it ran"
    tensors = torch.load(path)
    torch.save({**tensors, next(reversed(tensors)): Code(ran)}, path)
    with one_line_error(ValueError, f"^model: .*{path.name} cannot be read"):
        LLM(tmp_path)
    # the drop-in loads by transformers' own code
    with pytest.raises(Exception, match="(?i)weights.?only|unpickl|unsupported"):
        dynkern.OPTForCausalLM.from_pretrained(tmp_path)
    assert not ran.exists()
    # what it would have done
    torch.load(path, weights_only=False)
    assert ran.exists()


# -- a vocabulary of another size ------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("size", "multiple"), [(140, None), (132, 64), (90, None)])
def test_resized_vocabularies(tmp_path, tied, size, multiple):
    module = tiny_opt(seed=2, tie_word_embeddings=tied)
    torch.manual_seed(0)
    module.resize_token_embeddings(size, pad_to_multiple_of=multiple, mean_resizing=False)
    vocab = module.config.vocab_size
    assert vocab == (size if multiple is None else 192)
    with torch.no_grad():
        module.lm_head.weight[-3:].mul_(3).add_(0.5)
    module.save_pretrained(tmp_path)
    check(tmp_path, module)
    new = vocab - 1
    settings = {"suppress_tokens": list(range(new)), "max_new_tokens": 3}
    ours = dynkern.OPTForCausalLM.from_pretrained(tmp_path)
    for policy in ("full", "uniform:2"):
        got = ours.generate(torch.tensor([[2, new]]), policy=policy, **settings)
        assert got.tolist() == [[2, new, new, new, new]]
    llm = LLM(tmp_path)
    with one_line_error(ValueError, f"token id {vocab}, expected 0 to {new}$"):
        llm.generate([[2, vocab]])
    assert PAD < new
