"""Matrices kept as int8 in a file: what they are worth, how they load, how a bad pair is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dynkern import assets
from dynkern.llm import LLM
from dynkern.models.checkpoint import Checkpoint, resolve_model
from dynkern.models.int8_file import INT8_FILE, narrow, widen
from dynkern.models.module import load_module
from support.errors import one_line_error
from support.opt import save_opt


def narrowed_checkpoint(directory: Path, **overrides) -> dict[str, torch.Tensor]:
    """A tiny checkpoint whose linears are int8; its tensors as they should load."""
    save_opt(directory, **overrides)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    kept, expected = {}, {}
    for name, tensor in tensors.items():
        if name.endswith("fc1.weight") or name.endswith("_proj.weight"):
            values, scale = narrow(tensor)
            kept |= {f"{name}.int8": values, f"{name}.scale": scale}
            expected[name] = values.float() * scale[:, None]
        else:
            kept[name] = expected[name] = tensor
    save_file(kept, directory / INT8_FILE)
    return expected


@pytest.mark.parametrize("rows", [1, 7, 60])
def test_narrowing_errs_by_half_a_step_of_each_row(rows):
    generator = torch.Generator().manual_seed(rows)
    # rows of very different sizes, one of them zero
    weight = torch.randn(rows, 33, generator=generator) * torch.logspace(-6, 3, rows)[:, None]
    weight[-1] = 0 if rows > 1 else weight[-1]
    values, scale = narrow(weight)
    assert values.abs().max() == 127 and scale.dtype == torch.float32
    error = (widen("w", values, scale) - weight).abs()
    assert (error <= scale[:, None] * 0.5 * (1 + 1e-5)).all()
    # what is on the grid comes back to the bit
    again = narrow(widen("w", values, scale))
    assert torch.equal(again[0], values)


def test_a_checkpoint_hands_out_wide_tensors_under_their_own_names(tmp_path):
    expected = narrowed_checkpoint(tmp_path)
    with Checkpoint(tmp_path) as tensors:
        assert sorted(tensors) == sorted(expected) and len(tensors) == len(expected)
        for name, tensor in expected.items():
            assert name in tensors and tensors.shape(name) == tuple(tensor.shape)
            assert torch.equal(tensors[name], tensor)
        assert not any(name.endswith(".scale") for name in tensors)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_generation_equals_that_of_the_widened_checkpoint(tmp_path, backend):
    expected = narrowed_checkpoint(tmp_path / "int8")
    wide = transformers.OPTForCausalLM.from_pretrained(
        None, config=_config(tmp_path / "int8"), state_dict=dict(expected)
    )
    wide.save_pretrained(tmp_path / "wide")
    prompts = [[2, 40, 41, 42], [2, 7]]
    texts = [
        [c.token_ids for c in LLM(tmp_path / name, backend=backend).generate(prompts, "uniform:4")]
        for name in ("int8", "wide")
    ]
    assert texts[0] == texts[1]


def _config(directory: Path) -> transformers.OPTConfig:
    return transformers.OPTConfig.from_pretrained(directory)


def test_modules_are_filled_and_transformers_alone_refuses(tmp_path):
    expected = narrowed_checkpoint(tmp_path)
    module = load_module(transformers.OPTForCausalLM, tmp_path)
    state = module.state_dict()
    assert not module.training
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert torch.equal(state["lm_head.weight"], expected["model.decoder.embed_tokens.weight"])
    with pytest.raises(OSError, match="model.safetensors"):
        # it would fill what it does not find at random
        transformers.OPTForCausalLM.from_pretrained(tmp_path)


def _spoil(directory: Path, change) -> None:
    tensors = load_file(directory / INT8_FILE)
    change(tensors)
    save_file(tensors, directory / INT8_FILE)


FC1 = "model.decoder.layers.1.fc1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{FC1}.scale"), f"{FC1}.int8 but no {FC1}.scale, expected both"),
        (lambda t: t.update({f"{FC1}.scale": t[f"{FC1}.scale"][:3].clone()}), "expected 92 floats"),
        (
            lambda t: t.update({f"{FC1}.int8": t[f"{FC1}.int8"].float()}),
            "expected a matrix of torch.int8",
        ),
        (lambda t: t.update({f"{FC1}.int8": t[f"{FC1}.int8"][:5].clone()}), r"has shape \(5, 48\)"),
        (lambda t: t.update({f"{FC1}.scale": t[f"{FC1}.scale"] * float("nan")}), "not finite"),
        (lambda t: [t.pop(f"{FC1}{end}") for end in (".int8", ".scale")], f"no tensor {FC1}"),
    ],
)
def test_bad_pairs_are_one_line(tmp_path, change, message):
    narrowed_checkpoint(tmp_path)
    _spoil(tmp_path, change)
    with one_line_error(ValueError, message):
        LLM(tmp_path)


# -- the bundle's place ---------------------------------------------------------------------------


def test_default_is_the_bundle_whatever_lies_in_the_folder(tmp_path, monkeypatch):
    narrowed_checkpoint(tmp_path / "bundle")
    monkeypatch.setattr(assets, "BUNDLE_NAME", str(tmp_path / "bundle"))
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("default") == tmp_path / "bundle"
    assert resolve_model("./default") == Path("default")
    assert LLM().path == tmp_path / "bundle"


def test_an_absent_bundle_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "BUNDLE_NAME", str(tmp_path / "absent"))
    with one_line_error(FileNotFoundError, "no 'default' model .*expected a checkpoint directory"):
        LLM()
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "notes.json").write_text(json.dumps({}))
    with one_line_error(FileNotFoundError, "no 'default' model"):
        LLM("default")
