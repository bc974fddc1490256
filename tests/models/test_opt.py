"""OPT's adapter: every tensor at its place, bit for bit; every config understood or refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file

from dynkern.llm import LLM, choose_device
from dynkern.models.opt import pack_weights, spec_from_config
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights
from support.errors import one_line_error
from support.opt import VARIANTS, save_opt, tiny_config, tiny_opt

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def assert_holds(weights: DecoderWeights, module, dtype: torch.dtype) -> None:
    """Every packed tensor equals the module's parameter; what the model lacks is None."""
    parameters = {n: p.detach().to(dtype) for n, p in module.named_parameters()}
    parameters.setdefault("lm_head.weight", parameters["model.decoder.embed_tokens.weight"])
    used = set()

    def same(tensor, *names) -> None:
        present = [parameters[name] for name in names if name in parameters]
        used.update(names)
        if not present:
            assert tensor is None, names
        else:
            assert tensor.dtype == dtype and tensor.is_contiguous()
            assert torch.equal(tensor, torch.cat(present)), names

    top = "model.decoder."
    same(weights.token_embedding, f"{top}embed_tokens.weight")
    same(weights.position_embedding, f"{top}embed_positions.weight")
    same(weights.project_in, f"{top}project_in.weight")
    same(weights.project_out, f"{top}project_out.weight")
    same(weights.final_norm_weight, f"{top}final_layer_norm.weight")
    same(weights.final_norm_bias, f"{top}final_layer_norm.bias")
    same(weights.lm_head, "lm_head.weight")
    for i, layer in enumerate(weights.layers):
        at = f"{top}layers.{i}."
        for kind in ("weight", "bias"):
            attn = [f"{at}self_attn.{p}_proj.{kind}" for p in "qkv"]
            same(getattr(layer, f"qkv_{kind}"), *attn)
            same(getattr(layer, f"kv_{kind}"), *attn[1:])
            same(getattr(layer, f"out_{kind}"), f"{at}self_attn.out_proj.{kind}")
            same(getattr(layer, f"attn_norm_{kind}"), f"{at}self_attn_layer_norm.{kind}")
            same(getattr(layer, f"ffn_norm_{kind}"), f"{at}final_layer_norm.{kind}")
            same(getattr(layer, f"fc1_{kind}"), f"{at}fc1.{kind}")
            same(getattr(layer, f"fc2_{kind}"), f"{at}fc2.{kind}")
    assert used >= set(parameters)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_arrive_bit_for_bit(tmp_path, variant, stored):
    module = tiny_opt(seed=3, **VARIANTS[variant]).to(DTYPES[stored])
    module.save_pretrained(tmp_path)
    llm = LLM(tmp_path, backend="reference")
    auto = torch.float32 if stored == "float16" else DTYPES[stored]
    assert llm.dtype == auto
    assert_holds(llm.engine.weights, module, auto)
    for name, dtype in DTYPES.items():
        weights = LLM(tmp_path, dtype=name, backend="reference").engine.weights
        assert_holds(weights, module, dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_a_module_are_shared_where_they_can_be(variant):
    module = tiny_opt(**VARIANTS[variant])
    spec = spec_from_config(module.config.to_dict())
    tensors = module.state_dict()
    weights = pack_weights(tensors, spec, torch.float32, CPU)
    assert_holds(weights, module, torch.float32)
    own = {t.data_ptr() for t in tensors.values()}
    copied = [t for t in weights.tensors() if t.data_ptr() not in own]
    assert len(copied) == (1 if variant == "no_bias_no_affine_gelu" else 2) * spec.num_layers


@pytest.mark.parametrize("prefix", ["model.decoder.", "decoder.", ""])
@pytest.mark.parametrize("variant", ["pre_norm", "untied_head"])
def test_prefixes(tmp_path, prefix, variant):
    module = save_opt(tmp_path, **VARIANTS[variant])
    renamed = {
        name.replace("model.decoder.", prefix): parameter.detach().clone()
        for name, parameter in module.named_parameters()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    weights = LLM(tmp_path, backend="reference").engine.weights
    assert_holds(weights, module, torch.float32)


def test_a_tied_head_is_held_once(tmp_path):
    tied, untied = tmp_path / "tied", tmp_path / "untied"
    module = save_opt(tied)
    save_opt(untied, tie_word_embeddings=False)
    llm = LLM(tied, backend="reference")
    assert llm.engine.weights.lm_head is llm.engine.weights.token_embedding
    assert llm.weight_bytes == sum(p.numel() * 4 for p in module.parameters())
    other = LLM(untied, backend="reference")
    assert other.weight_bytes == llm.weight_bytes + 131 * 48 * 4
    half = LLM(tied, dtype="bfloat16", backend="reference")
    assert half.weight_bytes == llm.weight_bytes // 2


# -- what the checkpoint lacks -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "model.decoder.embed_tokens.weight",
        "model.decoder.embed_positions.weight",
        "model.decoder.layers.0.self_attn.k_proj.weight",
        "model.decoder.layers.5.self_attn.v_proj.bias",
        "model.decoder.layers.3.fc2.bias",
        "model.decoder.layers.2.final_layer_norm.weight",
        "model.decoder.final_layer_norm.bias",
        "lm_head.weight",
    ],
)
def test_missing_tensors_and_wrong_shapes(name):
    module = tiny_opt(tie_word_embeddings=False)
    spec = spec_from_config(module.config.to_dict())
    tensors = dict(module.state_dict())
    whole = tensors.pop(name)
    with one_line_error(ValueError, f"^model: the checkpoint has no .*{name[14:]}"):
        pack_weights(tensors, spec, torch.float32, CPU)
    for wrong in (whole[:-1], whole[None], whole.flatten()[0]):
        with one_line_error(ValueError, rf"^model: {name} has shape \(.*\), expected \("):
            pack_weights({**tensors, name: wrong}, spec, torch.float32, CPU)


def test_a_config_that_does_not_fit_the_weights(tmp_path):
    save_opt(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    wrong = {"vocab_size": 132, "num_hidden_layers": 7, "ffn_dim": 91, "word_embed_proj_dim": 24}
    for key, value in wrong.items():
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with one_line_error(ValueError, "^model: .*(has no tensor|has shape)"):
            LLM(tmp_path)


# -- config --------------------------------------------------------------------------------------


def test_the_spec_of_a_config():
    spec = spec_from_config(tiny_config(do_layer_norm_before=False).to_dict())
    assert spec == DecoderSpec(
        vocab_size=131,
        num_layers=6,
        hidden_size=48,
        num_heads=3,
        ffn_size=92,
        max_positions=96,
        embed_size=48,
        pre_norm=False,
        activation="relu",
        bias=True,
        norm_affine=True,
        final_norm=False,
        tied_head=True,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )
    assert (spec.head_size, spec.attention_scale) == (16, 0.25)


CHANGES = {
    "pre_norm": {},
    "post_norm_projected": {"pre_norm": False, "final_norm": False, "embed_size": 24},
    "no_bias_no_affine_gelu": {"bias": False, "norm_affine": False, "activation": "gelu"},
    "no_final_norm": {"final_norm": False},
    "untied_head": {"tied_head": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_spec_of_each_variant(variant):
    spec = spec_from_config(tiny_config(**VARIANTS[variant]).to_dict())
    assert spec == replace(spec_from_config(tiny_config().to_dict()), **CHANGES[variant])


def test_an_old_config_leaves_keys_out():
    required = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "ffn_dim")
    whole = tiny_config().to_dict()
    bare = {k: whole[k] for k in (*required, "max_position_embeddings", "model_type")}
    assert spec_from_config(bare) == spec_from_config(whole)
    listed = spec_from_config({**bare, "eos_token_id": [50, 2], "pad_token_id": None})
    assert (listed.eos_token_id, listed.pad_token_id) == (50, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "llama"}, "^model: config.json says model_type 'llama', expected 'opt'$"),
        ({"model_type": None}, "^model: config.json says model_type None, expected 'opt'$"),
        ({"vocab_size": 0}, "has vocab_size = 0, expected an integer > 0$"),
        ({"vocab_size": None}, "has vocab_size = None, expected an integer > 0$"),
        ({"hidden_size": "48"}, "has hidden_size = '48', expected an integer > 0$"),
        ({"ffn_dim": 9.5}, "has ffn_dim = 9.5, expected an integer > 0$"),
        ({"num_hidden_layers": True}, "has num_hidden_layers = True, expected an integer > 0$"),
        ({"num_attention_heads": -3}, "has num_attention_heads = -3, expected an integer > 0$"),
        ({"num_attention_heads": 5}, "hidden_size 48, expected a multiple of num_attention_heads"),
        ({"activation_function": "silu"}, "has activation_function = 'silu', expected relu or"),
    ],
)
def test_configs_that_are_refused(tmp_path, change, expected):
    save_opt(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with one_line_error(ValueError, expected):
        LLM(tmp_path)


def test_an_empty_config(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with one_line_error(ValueError, "model_type None, expected 'opt'"):
        LLM(tmp_path)


# -- dtype and device ----------------------------------------------------------------------------


def test_the_dtype_key_of_old_configs(tmp_path):
    module = tiny_opt().to(torch.bfloat16)
    module.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("dtype") == "bfloat16"
    path.write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    assert LLM(tmp_path).dtype == torch.bfloat16
    path.write_text(json.dumps(config))
    assert LLM(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float64", "bf16", "", "torch.float32"])
def test_unknown_dtypes(tmp_path, dtype):
    save_opt(tmp_path)
    with one_line_error(ValueError, f"^dtype: got '{dtype}', expected one of auto, float32"):
        LLM(tmp_path, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "tpu:0", "meta", "mps", "cpu:x"])
def test_unknown_devices(device):
    with one_line_error(ValueError, f"^device: got '{device}', expected cpu, cuda or cuda:N$"):
        choose_device(device)


def test_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device(None) == choose_device("cpu") == CPU
    with one_line_error(ValueError, "^device: got 'cuda:0', but torch sees no GPU here$"):
        choose_device("cuda:0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device(None) == CUDA


def test_every_field_of_the_weights_is_compared():
    # assert_holds must grow with the dataclasses
    names = {f.name for f in fields(LayerWeights)}
    kinds = ("qkv", "out", "attn_norm", "ffn_norm", "fc1", "fc2")
    assert names == {f"{part}_{kind}" for part in kinds for kind in ("weight", "bias")}
    assert len(fields(DecoderWeights)) == 8
