"""PackedWeights: every weight at its place, exact or within half a step, in little memory."""

from __future__ import annotations

import ctypes
import re
import weakref
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from dynkern.kernels import native, native_engine
from dynkern.models.opt import pack_for_cpu, pack_weights, source_parts, spec_from_config
from dynkern.models.packed import PackedWeights
from dynkern.models.weights import DecoderWeights, LayerWeights
from support.backends import isa_levels, needs_engine
from support.errors import one_line_error
from support.opt import VARIANTS, tiny_opt

pytestmark = needs_engine
CPU = torch.device("cpu")
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
SOURCES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def each_field(packed: PackedWeights, plain: DecoderWeights):
    """Name, content in `packed`, the tensor in `plain`."""
    owners = [(None, plain), *enumerate(plain.layers)]
    for layer, owner in owners:
        for field in fields(DecoderWeights if layer is None else LayerWeights):
            if field.name != "layers":
                tensor = getattr(owner, field.name)
                yield field.name, packed.read(field.name, layer), tensor


def is_linear(name: str) -> bool:
    whole = ("token_embedding", "lm_head", "project_in", "project_out")
    return name in whole or name in [f"{part}_weight" for part in ("qkv", "out", "fc1", "fc2")]


@pytest.fixture(autouse=True)
def poisoned_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_comes_back(variant, format, source):
    module = tiny_opt(seed=3, **VARIANTS[variant]).to(source)
    spec = spec_from_config(module.config.to_dict())
    tensors = module.state_dict()
    packed = pack_for_cpu(tensors, spec, format)
    plain = pack_weights(tensors, spec, torch.float32, CPU)
    for name, got, want in each_field(packed, plain):
        if want is None:
            assert got is None, name
        elif not is_linear(name):
            assert torch.equal(got, want.flatten()), name
        elif format == "int8":
            step = want.abs().amax(dim=1, keepdim=True) / 127
            assert ((got - want).abs() <= 0.5 * step * (1 + 1e-5)).all(), name
        else:
            assert torch.equal(got, want.to(FORMATS[format]).float()), name


def test_values_at_the_edge():
    module = tiny_opt()
    weight = module.model.decoder.layers[1].fc1.weight.data
    weight[0] = 0.0
    weight[1, 0], weight[2, 0], weight[3] = 3e38, -1e-30, -0.0
    spec = spec_from_config(module.config.to_dict())
    for format in ("float32", "bfloat16"):
        got = pack_for_cpu(module.state_dict(), spec, format).read("fc1_weight", 1)
        assert torch.equal(got, weight.to(FORMATS[format]).float())
    got = pack_for_cpu(module.state_dict(), spec, "int8").read("fc1_weight", 1)
    assert (got[[0, 3]] == 0).all() and got.isfinite().all()


def test_rows_that_are_strided():
    module = tiny_opt()
    spec = spec_from_config(module.config.to_dict())
    plain = module.state_dict()
    wide = {}
    for i, (name, tensor) in enumerate(plain.items()):
        if tensor.dim() == 2 and i % 2:
            wide[name] = tensor.T.contiguous().T
        elif tensor.dim() == 2:
            wide[name] = torch.cat([tensor, torch.ones_like(tensor)], dim=1)[:, : tensor.shape[1]]
        else:
            wide[name] = tensor.repeat_interleave(2)[::2]
    same = pack_for_cpu(plain, spec).checksums() == pack_for_cpu(wide, spec).checksums()
    assert same


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_packing_is_the_same_on_any_threads_and_level(threads):
    module = tiny_opt(seed=1)
    spec = spec_from_config(module.config.to_dict())
    held, isa = torch.get_num_threads(), native.cpu_isa()
    try:
        for format in FORMATS:
            native.set_cpu_isa("auto")
            torch.set_num_threads(1)
            want = [got for _, got, _ in fields_of(module, spec, format)]
            torch.set_num_threads(threads)
            for level in isa_levels():
                native.set_cpu_isa(level)
                for (name, got, _), expected in zip(
                    fields_of(module, spec, format), want, strict=True
                ):
                    assert got is None or torch.equal(got, expected), (format, level, name)
    finally:
        torch.set_num_threads(held)
        native.set_cpu_isa(isa)


def fields_of(module, spec, format):
    plain = pack_weights(module.state_dict(), spec, torch.float32, CPU)
    return list(each_field(pack_for_cpu(module.state_dict(), spec, format), plain))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tied", [True, False])
def test_it_takes_little_more_than_its_weights(format, tied):
    sizes = {"hidden_size": 128, "ffn_dim": 512, "vocab_size": 2000, "word_embed_proj_dim": 128}
    module = tiny_opt(num_attention_heads=4, tie_word_embeddings=tied, **sizes)
    spec = spec_from_config(module.config.to_dict())
    packed = pack_for_cpu(module.state_dict(), spec, format)
    linear = sum(p.numel() for p in module.parameters() if p.dim() == 2)
    linear -= module.model.decoder.embed_positions.weight.numel()
    rest = sum(p.numel() for p in module.parameters()) - linear
    assert packed.element_size == {"float32": 4, "bfloat16": 2, "int8": 1}[format]
    ideal = linear * packed.element_size + rest * 4
    assert ideal <= packed.nbytes <= 1.15 * ideal
    assert packed.dtype == (torch.float32 if format == "float32" else torch.bfloat16)
    assert packed.device == CPU


class Counting(Mapping):
    """Hands out fresh tensors and counts those that are still held when the next is asked for."""

    def __init__(self, tensors: Mapping) -> None:
        self.tensors, self.given, self.most, self.reads = tensors, [], 0, []

    def __getitem__(self, name):
        self.most = max(self.most, sum(memory() is not None for memory in self.given))
        self.reads.append(name)
        memory = self.tensors[name].numpy().copy()
        self.given.append(weakref.ref(memory))
        return torch.from_numpy(memory)

    def __contains__(self, name):
        return name in self.tensors

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


@pytest.mark.parametrize("variant", ["pre_norm", "post_norm_projected", "untied_head"])
def test_one_tensor_is_held_at_a_time(variant):
    module = tiny_opt(**VARIANTS[variant])
    spec = spec_from_config(module.config.to_dict())
    counting = Counting({n: p.detach() for n, p in module.named_parameters()})
    pack_for_cpu(counting, spec, "bfloat16")
    assert counting.most == 0
    assert len(counting.reads) == len(set(counting.reads)) == len(list(source_parts(spec)))


def test_tied_heads_share_the_matrix():
    module = tiny_opt()
    spec = spec_from_config(module.config.to_dict())
    model = pack_for_cpu(module.state_dict(), spec).model
    assert model.head.data == model.token.data and model.head.n == spec.vocab_size
    assert model.project_in.data is None and model.project_out.data is None
    untied = tiny_opt(tie_word_embeddings=False)
    spec = spec_from_config(untied.config.to_dict())
    model = pack_for_cpu(untied.state_dict(), spec).model
    assert model.head.data != model.token.data


def test_checksums_tell_models_apart():
    one, two = tiny_opt(seed=1), tiny_opt(seed=2)
    spec = spec_from_config(one.config.to_dict())
    sums = [pack_for_cpu(m.state_dict(), spec).checksums() for m in (one, two, one)]
    assert sums[0] == sums[2] != sums[1]
    edited = one.state_dict()
    edited["model.decoder.layers.0.fc1.bias"][0] += 1e-6
    assert pack_for_cpu(edited, spec).checksums() != sums[0]


def test_bad_input():
    module = tiny_opt()
    spec = spec_from_config(module.config.to_dict())
    tensors = module.state_dict()
    with one_line_error(ValueError, "^format: got 'float16', expected one of float32, bfloat16"):
        pack_for_cpu(tensors, spec, "float16")
    name = "model.decoder.layers.0.fc1.weight"
    with one_line_error(ValueError, rf"^model: {name} has shape \(48, 92\), expected \(92, 48\)"):
        pack_for_cpu({**tensors, name: tensors[name].T}, spec)


def test_the_structs_are_those_of_the_header():
    header = Path(native.__file__).resolve().parents[2] / "csrc" / "cpu" / "engine.h"
    if not header.is_file():
        pytest.skip("no csrc beside the package")
    text = re.sub(r"//.*", "", header.read_text())
    for name in ("Matrix", "Layer", "Model", "Prefill", "Decode"):
        body = re.search(rf"struct {name} {{(.*?)}};", text, re.DOTALL)[1]
        members = [member.split() for member in body.split(";") if member.strip()]
        mirrored = getattr(native_engine, name)._fields_
        assert [field for field, _ in mirrored] == [words[-1].lstrip("*") for words in members]
        for (field, kind), words in zip(mirrored, members, strict=True):
            if "*" in "".join(words):
                assert kind is ctypes.c_void_p or issubclass(kind, ctypes._Pointer), field
            else:
                plain = {
                    "int64_t": ctypes.c_int64,
                    "uint64_t": ctypes.c_uint64,
                    "double": ctypes.c_double,
                }
                assert kind is (plain.get(words[0]) or getattr(native_engine, words[0])), field
