"""accelerate(): a loaded model becomes the drop-in, and free_parameters keeps its weights once."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import transformers

import dynkern
from dynkern.hf.packed import PackedEngine
from dynkern.models.packed import PackedWeights
from dynkern.ops.backends import use_backend
from support.backends import BACKENDS, needs_engine
from support.errors import one_line_error
from support.opt import VARIANTS, random_prompts, save_opt, tiny_opt
from support.twins import padded, twins


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with use_backend(request.param):
        yield


INPUTS = padded(random_prompts(4, seed=7))
SETTINGS = {"max_new_tokens": 8}


def test_the_same_object_from_here_on():
    model = tiny_opt(seed=1)
    layers, embedding = model.model.decoder.layers, model.get_input_embeddings().weight
    want = model.generate(**INPUTS, **SETTINGS)
    got = dynkern.accelerate(model)
    assert got is model and type(model) is dynkern.OPTForCausalLM
    assert model.model.decoder.layers is layers
    assert model.get_input_embeddings().weight is embedding is model.lm_head.weight
    assert torch.equal(model.generate(**INPUTS, **SETTINGS), want)
    # training and fresh weights, as in any drop-in
    model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
    with torch.no_grad():
        layers[2].fc1.weight.neg_()
    reference = transformers.OPTForCausalLM(model.config).eval()
    reference.load_state_dict(model.state_dict())
    assert torch.equal(
        model.generate(**INPUTS, **SETTINGS), reference.generate(**INPUTS, **SETTINGS)
    )


def test_auto_classes(tmp_path):
    save_opt(tmp_path, seed=1)
    model = dynkern.accelerate(transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
    want = twins(seed=1)[0].generate(**INPUTS, **SETTINGS)
    assert torch.equal(model.generate(**INPUTS, **SETTINGS), want)


def test_the_default_policy():
    model = dynkern.accelerate(tiny_opt(seed=1), policy="early_exit:2")
    ours = twins(seed=1)[1]
    routed = ours.generate(**INPUTS, policy="early_exit:2", **SETTINGS)
    full = ours.generate(**INPUTS, **SETTINGS)
    assert not torch.equal(routed, full)
    assert torch.equal(model.generate(**INPUTS, **SETTINGS), routed)
    assert torch.equal(model.generate(**INPUTS, policy="full", **SETTINGS), full)
    with pytest.raises(NotImplementedError, match="policy='full'"):
        model.generate(**INPUTS, num_beams=2)
    # a second time: another default
    assert dynkern.accelerate(model, dynkern.policy("uniform:3")) is model
    want = ours.generate(**INPUTS, policy="uniform:3", **SETTINGS)
    assert torch.equal(model.generate(**INPUTS, **SETTINGS), want)
    assert torch.equal(copy.deepcopy(model).generate(**INPUTS, **SETTINGS), want)


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (lambda: "facebook/opt-125m", {}, "^model: got builtins.str, expected a transformers.OPT"),
        (lambda: tiny_opt().model, {}, "^model: got .*OPTModel, expected a transformers.OPTFor"),
        (tiny_opt, {"policy": "uniform:7"}, "^uniform budget: got 7, expected 1 to 6"),
        (tiny_opt, {"policy": "fast"}, "^policy 'fast': "),
    ],
)
def test_bad_input(make, options, expected):
    model = make()
    kind = type(model)
    with one_line_error(ValueError, expected):
        dynkern.accelerate(model, **options)
    assert type(model) is kind


def test_a_subclass_is_refused():
    class Mine(transformers.OPTForCausalLM):
        pass

    with one_line_error(ValueError, "^model: got .*Mine, expected a transformers.OPTForCausalLM$"):
        dynkern.accelerate(Mine(tiny_opt().config))


# -- free_parameters -------------------------------------------------------------------------------


def held_bytes() -> int:
    """Of every tensor that lives, storages once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # torch's own lazy modules answer to isinstance; sparse tensors have no storage
        if not issubclass(type(thing), torch.Tensor) or thing.device.type != "cpu":
            continue
        if thing.layout == torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def large(dtype: torch.dtype) -> transformers.OPTForCausalLM:
    """11 MB in float32."""
    sizes = {"hidden_size": 192, "ffn_dim": 768, "num_attention_heads": 3}
    return tiny_opt(word_embed_proj_dim=192, vocab_size=509, **sizes).to(dtype)


@needs_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_halved(dtype):
    base = held_bytes()
    model = large(dtype)
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    assert own <= held_bytes() - base < own + 10_000
    dynkern.accelerate(model)
    ids = model.generate(**INPUTS, **SETTINGS)
    # the K/V cache of the last batch is kept by the engine
    weights = model._packed.engine(model).weights
    cache = model._packed.engine(model)._cache
    room = cache.k.nbytes + cache.v.nbytes
    twice = held_bytes() - base - room
    assert 1.95 * own < twice < 2.2 * own + (4 << 20)
    dynkern.accelerate(model, free_parameters=True)
    del weights, cache
    once = held_bytes() - base
    # packed panels round rows up, and huge pages start at a boundary
    assert 0.95 * own < once < 1.15 * own + (4 << 20)
    assert twice - once > 0.95 * own
    assert torch.equal(model.generate(**INPUTS, **SETTINGS), ids)


@needs_engine
def test_each_parameter_is_dropped_as_soon_as_it_is_packed(monkeypatch):
    model = large(torch.float32)
    alive = [weakref.ref(p) for p in model.parameters()]
    total, counts = len(alive), []
    write = PackedWeights.write

    def counting(self, part, tensor):
        counts.append(sum(reference() is not None for reference in alive))
        write(self, part, tensor)

    monkeypatch.setattr(PackedWeights, "write", counting)
    dynkern.accelerate(model, free_parameters=True)
    assert counts == list(range(total, 0, -1))


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        *((variant, torch.float32) for variant in VARIANTS),
        ("pre_norm", torch.bfloat16),
        ("untied_head", torch.float16),
    ],
    ids=str,
)
def test_freed_models_generate_the_same(variant, dtype, backend):
    model = tiny_opt(seed=3, **VARIANTS[variant]).to(dtype)
    ours = dynkern.OPTForCausalLM(model.config).to(dtype).eval()
    ours.load_state_dict(model.state_dict())
    references = [weakref.ref(p) for p in model.parameters()]
    freed = dynkern.accelerate(model, policy="uniform:3", free_parameters=True)
    gc.collect()
    if freed._packed.engine(freed).executor.name == "native":
        assert not any(reference() is not None for reference in references)
    assert freed.device == torch.device("cpu") and freed.dtype == dtype
    more = {"repetition_penalty": 1.3, "bad_words_ids": [[50]], "max_new_tokens": 6}
    for settings in ({}, {"policy": "full"}, {"do_sample": True, "seed": 1}, more):
        default = {"policy": "uniform:3", "max_new_tokens": 6}
        want = ours.generate(**INPUTS, **{**default, **settings})
        assert torch.equal(freed.generate(**INPUTS, **{"max_new_tokens": 6, **settings}), want)


@pytest.fixture(scope="module")
def freed():
    return dynkern.accelerate(tiny_opt(seed=1), free_parameters=True)


BARRED: dict[str, Callable] = {
    "forward": lambda m, path: m(**INPUTS),
    "forward of a part": lambda m, path: m.model(**INPUTS),
    "training": lambda m, path: m(**INPUTS, labels=INPUTS["input_ids"]),
    "train": lambda m, path: m.train(),
    "save_pretrained": lambda m, path: m.save_pretrained(path),
    "state_dict": lambda m, path: m.state_dict(),
    "state_dict of a part": lambda m, path: m.model.decoder.layers[0].state_dict(),
    "load_state_dict": lambda m, path: m.load_state_dict(tiny_opt().state_dict()),
    "to a dtype": lambda m, path: m.to(torch.bfloat16),
    "half": lambda m, path: m.half(),
    "copy": lambda m, path: copy.deepcopy(m),
    "pickle": lambda m, path: pickle.dumps(m),
    "torch.save": lambda m, path: torch.save(m, path / "model.pt"),
    "resize": lambda m, path: m.resize_token_embeddings(140),
    "beams": lambda m, path: m.generate(**INPUTS, num_beams=2),
    "hidden states": lambda m, path: m.generate(**INPUTS, output_hidden_states=True),
}


@pytest.mark.parametrize("act", BARRED.values(), ids=BARRED)
def test_what_a_freed_model_cannot_do(freed, act, tmp_path):
    with one_line_error(RuntimeError, r"parameters were dropped by free_parameters=True, load"):
        act(freed, tmp_path)
    if act is not BARRED["torch.save"]:
        assert list(tmp_path.iterdir()) == []
    assert freed.generate(**INPUTS, max_new_tokens=2).shape[0] == 4


def test_a_freed_model_that_must_run_in_their_loop_names_the_policy_first(freed):
    with one_line_error(NotImplementedError, "policy='full', which runs transformers' own loop$"):
        freed.generate(**INPUTS, policy="uniform:3", num_beams=2)


def test_freeing_twice_and_eval(freed):
    assert dynkern.accelerate(freed, "uniform:2", free_parameters=True) is freed.eval()
    want = twins(seed=1)[1].generate(**INPUTS, policy="uniform:2", max_new_tokens=4)
    assert torch.equal(freed.generate(**INPUTS, max_new_tokens=4), want)
    dynkern.accelerate(freed)


def test_a_model_that_cannot_be_packed_keeps_its_parameters():
    model = tiny_opt(seed=1)
    model.model.decoder.layers[5].fc2.weight = torch.nn.Parameter(torch.zeros(48, 91))
    with one_line_error(ValueError, r"layers.5.fc2.weight has shape \(48, 91\), expected"):
        dynkern.accelerate(model, free_parameters=True)
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert not model._packed.freed and isinstance(model._packed, PackedEngine)
