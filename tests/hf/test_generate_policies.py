"""The drop-in's streamers, its policies, and what it leaves to transformers' own loop."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import GenerationConfig

import dynkern
from dynkern.hf import modeling, served
from dynkern.llm import LLM
from support.errors import one_line_error
from support.greedy import new_tokens
from support.opt import random_prompts, save_opt, tiny_opt
from support.twins import EOS, check_equal, padded, twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using the model-agnostic default"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated"),
]

NEW_TOKENS = 16


@pytest.fixture(scope="module")
def pair():
    return twins(seed=1)


# -- streamer ------------------------------------------------------------------------------------


class Recorder:
    """Notes the calls of a streamer."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append((tuple(value.shape), value.dtype, value.tolist()))

    def end(self):
        self.calls.append("end")


@pytest.mark.parametrize("inputs", [padded([[2, 40, 41]]), padded([[2, 40], [2] * 4])])
def test_streamer_gets_the_same_calls(pair, inputs):
    one_row = {name: tensor[:1] for name, tensor in inputs.items()}
    recorders = Recorder(), Recorder()
    for module, recorder in zip(pair, recorders, strict=True):
        module.generate(**one_row, streamer=recorder, max_new_tokens=5)
    theirs, ours = recorders
    assert ours.calls == theirs.calls
    assert ours.calls[-1] == "end" and len(ours.calls) == 7


def test_streamer_under_a_policy(pair):
    recorder = Recorder()
    ids = torch.tensor([[2, 40, 41]])
    got = pair[1].generate(ids, policy="uniform:2", streamer=recorder, max_new_tokens=5)
    assert [call[2] for call in recorder.calls[:1]] == [ids.tolist()]
    assert [call[2][0] for call in recorder.calls[1:-1]] == got[0, 3:].tolist()


# -- policies ------------------------------------------------------------------------------------

POLICIES = [
    ("full", {}),
    ("uniform:3", {}),
    ("early_exit:2", {"prefill": "routed"}),
    ("random:3", {"seed": 4}),
    ("random-step:2", {"seed": 4, "kv_fill": "copy"}),
    ("stochastic:0.5", {"kv_fill": "mask"}),
    ("confidence:top_prob=0.5", {"kv_fill": "deferred"}),
]


@pytest.mark.parametrize(("policy", "options"), POLICIES, ids=str)
def test_equals_llm_under_the_same_policy(tmp_path, policy, options):
    save_opt(tmp_path, seed=3)
    ours = dynkern.OPTForCausalLM.from_pretrained(tmp_path).eval()
    prompts = random_prompts(4, seed=2)
    inputs = padded(prompts)
    got = ours.generate(**inputs, policy=policy, max_new_tokens=NEW_TOKENS, **options)
    want = LLM(tmp_path).generate(prompts, policy, max_new_tokens=NEW_TOKENS, **options)
    width = inputs["input_ids"].shape[1]
    assert new_tokens(got, width, [EOS]) == [c.token_ids for c in want]


def test_a_policy_changes_the_text(pair):
    inputs = padded(random_prompts(4, seed=2))
    texts = {
        str(pair[1].generate(**inputs, policy=policy, max_new_tokens=8).tolist())
        for policy in ("full", "uniform:5", "uniform:2", "early_exit:0")
    }
    assert len(texts) == 4


def test_policy_objects(pair):
    ids = torch.tensor([[2, 40, 41]])
    by_name = pair[1].generate(ids, policy="uniform:2", max_new_tokens=5)
    policy = dynkern.policy("uniform:2")
    assert torch.equal(pair[1].generate(ids, policy=policy, max_new_tokens=5), by_name)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"policy": "uniform"}, "^policy 'uniform': malformed"),
        ({"policy": "uniform:7"}, "^uniform budget: got 7, expected 1 to 6"),
        ({"policy": 3}, "^policy: got int, expected"),
        ({"kv_fill": "paint"}, "^kv_fill: got 'paint', expected one of"),
        ({"prefill": "half"}, "^prefill: got 'half', expected one of"),
        ({"seed": -1}, "^seed: got -1, expected"),
        ({"policy": "stochastic:0.5", "prefill": "routed"}, "^prefill: 'routed' needs a planned"),
    ],
)
def test_bad_policies(pair, options, expected):
    with one_line_error(ValueError, expected):
        pair[1].generate(torch.tensor([[2, 40]]), **options)


# -- what the engine does not serve ---------------------------------------------------------------

NOT_SERVED = {
    "num_beams": 3,
    "prompt_lookup_num_tokens": 2,
    "assistant_early_exit": 2,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "guidance_scale": 1.5,
    "token_healing": True,
    "cache_implementation": "static",
    "output_attentions": True,
    "output_hidden_states": True,
    "position_ids": torch.tensor([[0, 1, 2]]),
    "inputs_embeds": torch.zeros(1, 3, 48),
    "past_key_values": transformers.DynamicCache(),
    "assistant_model": object(),
    "synced_gpus": True,
    "custom_generate": print,
}


@pytest.mark.parametrize(("setting", "value"), NOT_SERVED.items(), ids=NOT_SERVED)
def test_settings_not_served_under_a_policy(pair, setting, value):
    expected = f"^generate: {setting}.* is not served under a policy; .* policy='full', which runs"
    with one_line_error(NotImplementedError, expected):
        pair[1].generate(torch.tensor([[2, 40, 41]]), policy="uniform:3", **{setting: value})


def test_every_setting_of_transformers_is_known():
    # a new one must be looked at: does it act inside transformers' own loop?
    named = served._SERVED | set(served._NEUTRAL) | set(NOT_SERVED)
    others = {"use_mtp", "is_assistant", "low_memory", "constraints", "force_words_ids"}
    assert set(GenerationConfig().to_dict()) <= named | others


def _beam_sample(module, inputs):
    torch.manual_seed(3)
    return module.generate(**inputs, num_beams=2, do_sample=True, max_new_tokens=8)


def _own_cache(module, inputs):
    cache = transformers.DynamicCache(config=module.config)
    ids = module.generate(**inputs, past_key_values=cache, max_new_tokens=4)
    assert cache.get_seq_length() == ids.shape[1] - 1
    more = {
        "input_ids": ids,
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 4), value=1),
    }
    return module.generate(**more, past_key_values=cache, max_new_tokens=4)


def _embeddings(module, inputs):
    embeds = module.get_input_embeddings()(inputs["input_ids"])
    mask = inputs["attention_mask"]
    return module.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=8)


def _assisted(module, inputs):
    one = {name: tensor[:1] for name, tensor in inputs.items()}
    return module.generate(**one, assistant_model=tiny_opt(seed=2), max_new_tokens=8)


def _hidden_states(module, inputs):
    out = module.generate(
        **inputs, output_hidden_states=True, return_dict_in_generate=True, max_new_tokens=3
    )
    return torch.cat([h[-1][:, -1] for h in out.hidden_states])


def _own_loop(module, inputs):
    def loop(model, input_ids, **kwargs):
        return model(input_ids).logits.argmax(dim=-1)

    return module.generate(**inputs, custom_generate=loop, max_new_tokens=3)


THEIRS = {
    "beams": lambda m, i: m.generate(**i, num_beams=3, max_new_tokens=8),
    "best beams": lambda m, i: m.generate(
        **i, num_beams=3, num_return_sequences=2, length_penalty=0.5, max_new_tokens=8
    ),
    "beams that sample": _beam_sample,
    "prompt lookup": lambda m, i: m.generate(
        i["input_ids"][1:2], prompt_lookup_num_tokens=2, max_new_tokens=8
    ),
    "assisted": _assisted,
    "static cache": lambda m, i: m.generate(
        **i, cache_implementation="static", disable_compile=True, max_new_tokens=8
    ),
    "own cache": _own_cache,
    "embeddings": _embeddings,
    "hidden states": _hidden_states,
    "guidance": lambda m, i: m.generate(i["input_ids"][1:2], guidance_scale=2.0, max_new_tokens=8),
    "own loop": _own_loop,
}


@pytest.mark.parametrize("run", THEIRS.values(), ids=THEIRS)
def test_full_depth_leaves_the_rest_to_transformers(pair, run, monkeypatch):
    monkeypatch.setattr(modeling, "decode", lambda *a: pytest.fail("ran on the engine"))
    inputs = padded(random_prompts(3, seed=5))
    assert torch.equal(run(pair[1], inputs), run(pair[0], inputs))


# -- models that are not what their parameters say ------------------------------------------------


def _hooked(module):
    module.model.decoder.layers[2].fc2.register_forward_hook(lambda m, a, out: out * 1.5)


def _pre_hooked(module):
    module.lm_head.register_forward_pre_hook(lambda m, args: (args[0] * 2,))


def _adapter(module):
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 0.1 * x.flip(-1)

    old = module.model.decoder.layers[1].self_attn.q_proj
    new = Adapted(48, 48)
    new.load_state_dict(old.state_dict())
    module.model.decoder.layers[1].self_attn.q_proj = new


def _parametrized(module):
    layer = module.model.decoder.layers[0].fc1
    torch.nn.utils.parametrizations.weight_norm(layer)


def _own_forward(module):
    layer = module.model.decoder.layers[3].fc2
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 2


def _head_with_bias(module):
    module.lm_head = torch.nn.Linear(48, 131)


def _activation(module):
    module.model.decoder.layers[4].activation_fn = torch.nn.SiLU()


def _layer_less(module):
    del module.model.decoder.layers[5]


CHANGES = {
    _hooked: "a forward hook on model.decoder.layers.2.fc2",
    _pre_hooked: "a forward hook on lm_head",
    _adapter: "model.decoder.layers.1.self_attn.q_proj, a .*Adapted,",
    _parametrized: "a model with model.decoder.layers.0.fc1.parametrizations.weight.original0",
    _own_forward: "a replaced forward of model.decoder.layers.3.fc2",
    _head_with_bias: "a model with lm_head.bias",
    _activation: "model.decoder.layers.4.activation_fn, a SiLU,",
    _layer_less: "a model without model.decoder.layers.5.fc1.bias",
}


@pytest.mark.parametrize(
    ("change", "name"), CHANGES.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_changed_models(change, name):
    theirs, ours = twins(seed=1)
    ids = torch.tensor([[2, 40, 41]])
    before = ours.generate(ids, max_new_tokens=8)
    logits = theirs(ids).logits
    for module in (theirs, ours):
        torch.manual_seed(0)
        change(module)
    assert change is _parametrized or not torch.allclose(theirs(ids).logits, logits)
    got = ours.generate(ids, max_new_tokens=8)
    assert torch.equal(got, theirs.generate(ids, max_new_tokens=8))
    if change is _layer_less:
        assert not torch.equal(got, before)
    with one_line_error(NotImplementedError, f"^generate: {name} is not served under a policy"):
        ours.generate(ids, policy="uniform:3")
    with one_line_error(ValueError, f"^model: {name} is nothing that the engine runs$"):
        dynkern.accelerate(theirs)


def test_hooks_of_transformers_own_and_compiled_forwards_change_nothing(monkeypatch):
    ours = twins(seed=1)[1]
    ids = torch.tensor([[2, 40, 41]])
    want = ours.generate(ids, max_new_tokens=8)
    ours(ids, output_hidden_states=True)  # its recorders stay behind
    ours.forward = torch.compile(ours.forward)
    monkeypatch.setattr(transformers.OPTForCausalLM, "_sample", lambda *a, **k: pytest.fail("fell"))
    assert torch.equal(ours.generate(ids, max_new_tokens=8), want)


def test_a_head_that_is_no_longer_tied():
    theirs, ours = twins(seed=1)
    ids = torch.tensor([[2, 40, 41]])
    before = ours.generate(ids, max_new_tokens=8)
    for module in (theirs, ours):
        torch.manual_seed(0)
        module.lm_head = torch.nn.Linear(48, 131, bias=False)
    got = check_equal(theirs, ours, {"input_ids": ids}, max_new_tokens=8)
    assert not torch.equal(got, before)
    assert ours.generate(ids, policy="uniform:3", max_new_tokens=2).shape == (1, 5)


def test_other_activations_run_in_transformers():
    theirs, ours = twins(activation_function="silu")
    ids = torch.tensor([[2, 40, 41]])
    assert torch.equal(ours.generate(ids, max_new_tokens=6), theirs.generate(ids, max_new_tokens=6))
    with one_line_error(NotImplementedError, "^generate: config.json has activation_function"):
        ours.generate(ids, policy="uniform:3")


def test_unknown_arguments_raise_as_in_transformers(pair):
    for module in pair:
        with pytest.raises(ValueError, match="kv_filling"):
            module.generate(torch.tensor([[2, 40]]), kv_filling="copy")
