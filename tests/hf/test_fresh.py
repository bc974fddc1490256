"""generate reads the module's weights as they are now, and leaves the module as it was."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import transformers
from torch import nn

import dynkern
from dynkern.models.packed import PackedWeights
from dynkern.ops.backends import use_backend
from support.backends import BACKENDS, needs_engine
from support.opt import random_prompts, tiny_config, tiny_opt
from support.twins import padded, twins


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shared parameters, and parameters packed for the CPU engine."""
    with use_backend(request.param):
        yield


INPUTS = padded(random_prompts(4, seed=7))
POLICIES = ["full", "uniform:3"]


def model(seed: int = 1, **overrides):
    return twins(seed, **overrides)[1]


def ids(module, policy: str = "full") -> torch.Tensor:
    return module.generate(**INPUTS, policy=policy, max_new_tokens=10)


def fresh(module, policy: str = "full") -> torch.Tensor:
    """Ids of a module that never generated before and has the same weights."""
    other = dynkern.OPTForCausalLM(module.config).to(module.dtype).eval()
    other.load_state_dict(module.state_dict())
    return ids(other, policy)


# -- weights that change -------------------------------------------------------------------------


def optimizer_step(module) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
    optimizer.step()


def data_edit(name: str) -> Callable:
    def edit(module) -> None:
        parameter = module.get_parameter(f"model.decoder.{name}")
        parameter.data.mul_(-1.5).add_(0.1)

    edit.__name__ = f"data edit of {name}"
    return edit


def data_replaced(module) -> None:
    for layer in module.model.decoder.layers:
        layer.self_attn.v_proj.weight.data = torch.randn(48, 48)
        layer.fc2.weight.data = torch.randn(48, 92)


def no_grad_copy(module) -> None:
    with torch.no_grad():
        module.model.decoder.layers[2].self_attn.q_proj.weight.copy_(torch.randn(48, 48))


def through_numpy(module) -> None:
    # no version counter sees this
    module.model.decoder.layers[0].self_attn.v_proj.weight.detach().numpy()[:] *= -2


def state_dict_loaded(module) -> None:
    module.load_state_dict(tiny_opt(seed=9).state_dict())


def state_dict_assigned(module) -> None:
    module.load_state_dict(tiny_opt(seed=9).state_dict(), assign=True)
    module.tie_weights()


def submodule_replaced(module) -> None:
    module.model.decoder.layers[1].self_attn.k_proj = nn.Linear(48, 48)
    module.model.decoder.layers[1].fc1 = nn.Linear(48, 92)


def layers_swapped(module) -> None:
    layers = module.model.decoder.layers
    layers[0].self_attn, layers[3].self_attn = layers[3].self_attn, layers[0].self_attn


def to_dtype(module) -> None:
    module.to(torch.bfloat16)


def fused_optimizer_step(module) -> None:
    # one kernel writes every parameter
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    module(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
    optimizer.step()


def one_vector(module) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector.detach() * -0.7, module.parameters())


def tensors_swapped(module) -> None:
    layers = module.model.decoder.layers
    torch.utils.swap_tensors(layers[0].fc1.weight, layers[4].fc1.weight)
    torch.utils.swap_tensors(layers[1].self_attn.v_proj.weight, layers[4].self_attn.v_proj.weight)


def there_and_back(module) -> None:
    # bfloat16 rounds, so the weights differ; dtype, device and shapes are as before
    module.to(torch.bfloat16).to(torch.float32)
    with torch.no_grad():
        module.model.decoder.layers[4].self_attn.out_proj.weight.neg_()


EDITS = [
    optimizer_step,
    data_edit("embed_tokens.weight"),
    data_edit("embed_positions.weight"),
    data_edit("layers.0.self_attn.q_proj.weight"),
    data_edit("layers.2.self_attn.v_proj.bias"),
    data_edit("layers.3.self_attn.out_proj.weight"),
    data_edit("layers.0.self_attn_layer_norm.weight"),
    data_edit("layers.5.fc1.weight"),
    data_edit("layers.5.fc2.bias"),
    data_edit("final_layer_norm.bias"),
    data_replaced,
    no_grad_copy,
    through_numpy,
    state_dict_loaded,
    state_dict_assigned,
    submodule_replaced,
    layers_swapped,
    to_dtype,
    fused_optimizer_step,
    one_vector,
    tensors_swapped,
    there_and_back,
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_never_stale(edit):
    torch.manual_seed(0)
    module = model()
    before = [ids(module, policy) for policy in POLICIES]
    edit(module)
    after = [ids(module, policy) for policy in POLICIES]
    assert not torch.equal(after[0], before[0])
    for policy, got in zip(POLICIES, after, strict=True):
        assert torch.equal(got, fresh(module, policy))


@pytest.mark.parametrize(
    "settings",
    [{"bad_words_ids": [[5]]}, {"do_sample": True, "seed": 3}, {"do_sample": True, "min_p": 0.02}],
    ids=str,
)
def test_never_stale_in_any_loop(settings):
    module = model()
    settings = {**INPUTS, "policy": "uniform:3", "max_new_tokens": 10, "seed": 3, **settings}
    before = module.generate(**settings)
    one_vector(module)
    other = dynkern.OPTForCausalLM(module.config).eval()
    other.load_state_dict(module.state_dict())
    got = module.generate(**settings)
    assert torch.equal(got, other.generate(**settings)) and not torch.equal(got, before)


def test_an_untied_head_that_changes():
    module = model(tie_word_embeddings=False)
    before = ids(module)
    module.lm_head.weight.data.neg_()
    assert torch.equal(ids(module), fresh(module))
    assert not torch.equal(ids(module), before)


def test_a_larger_vocabulary():
    module = model()
    before = ids(module)
    module.resize_token_embeddings(140, mean_resizing=False)
    with torch.no_grad():
        module.lm_head.weight[139] = module.lm_head.weight[int(before[0, -1])] * 3
    got = ids(module)
    assert torch.equal(got, fresh(module))
    assert (got == 139).any()


def test_edits_taken_back():
    module = model()
    before = ids(module)
    weight = module.model.decoder.layers[0].self_attn.v_proj.weight.data
    saved = weight.clone()
    weight.neg_()
    assert not torch.equal(ids(module), before)
    weight.copy_(saved)
    assert torch.equal(ids(module), before)


def test_unchanged_weights_are_packed_once():
    module = model()
    ids(module)
    engine = module._packed.engine(module)
    ids(module, "uniform:3")
    assert module._packed.engine(module) is engine
    no_grad_copy(module)
    assert module._packed.engine(module) is not engine


@needs_engine
def test_only_what_changed_is_packed_again(monkeypatch):
    written = []
    write = PackedWeights.write

    def counting(self, part, tensor):
        written.append((part.layer, part.name))
        write(self, part, tensor)

    monkeypatch.setattr(PackedWeights, "write", counting)
    with use_backend("auto"):
        module = model()
        ids(module)
        # every parameter once, the tied head not at all
        assert len(written) == len(set(written)) == len(list(module.parameters()))
        written.clear()
        through_numpy(module)
        ids(module)
        ids(module)
        assert written == [(0, "layers.0.self_attn.v_proj.weight")]
        assert module._packed.engine(module).executor.name == "native"


# -- the module after generating -----------------------------------------------------------------


@pytest.fixture
def used():
    module = model()
    return module, ids(module)


def test_state_dict_and_modules_are_unchanged(used):
    module, _ = used
    unused = model()
    assert list(module.state_dict()) == list(unused.state_dict())
    assert [name for name, _ in module.named_modules()] == [n for n, _ in unused.named_modules()]
    for (name, a), (_, b) in zip(module.named_parameters(), unused.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.requires_grad and a.is_leaf and not a.is_inference()
    assert [name for name, _ in module.named_buffers()] == [n for n, _ in unused.named_buffers()]


def test_a_deep_copy_is_independent(used):
    module, before = used
    engine = module._packed.engine(module)
    twin = copy.deepcopy(module)
    assert torch.equal(ids(twin), before)
    assert module._packed.engine(module) is engine is not twin._packed.engine(twin)
    data_edit("layers.0.self_attn.q_proj.weight")(twin)
    data_edit("layers.0.fc1.weight")(twin)
    assert torch.equal(ids(module), before)
    assert torch.equal(ids(twin), fresh(twin)) and not torch.equal(ids(twin), before)


def test_pickle(used):
    module, before = used
    data = pickle.dumps(module)
    assert len(data) < 1.2 * len(pickle.dumps(model()))
    assert torch.equal(ids(pickle.loads(data)), before)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    assert torch.equal(ids(torch.load(buffer, weights_only=False)), before)


def test_save_pretrained(tmp_path, used):
    module, before = used
    module.save_pretrained(tmp_path)
    assert torch.equal(ids(dynkern.OPTForCausalLM.from_pretrained(tmp_path)), before)
    theirs = transformers.OPTForCausalLM.from_pretrained(tmp_path)
    got = theirs.generate(**INPUTS, max_new_tokens=10)
    assert torch.equal(got, before)


def test_training_goes_on_after_generating(used):
    module, before = used
    reference = tiny_opt(seed=1)
    for twin in (module, reference):
        twin.train()
        twin.config.dropout = twin.model.decoder.dropout = 0.0
        for layer in twin.model.decoder.layers:
            layer.dropout = layer.self_attn.dropout = 0.0
        optimizer = torch.optim.SGD(twin.parameters(), lr=1e-4)
        for _ in range(3):
            optimizer.zero_grad()
            twin(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
            optimizer.step()
            if twin is module:
                with torch.no_grad():
                    twin.generate(**INPUTS, max_new_tokens=2)
    for (name, a), (_, b) in zip(
        module.named_parameters(), reference.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    module.eval()
    assert torch.equal(ids(module), fresh(module))
    assert not torch.equal(ids(module), before)


def test_generating_keeps_the_mode_and_the_gradients(used):
    module, _ = used
    module.train()
    module(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
    got = ids(module)
    assert module.training and not got.requires_grad and not got.is_inference()
    assert all(torch.equal(p.grad, gradients[name]) for name, p in module.named_parameters())


def test_forward_is_transformers_own(used):
    module, _ = used
    reference = tiny_opt(seed=1)
    with torch.no_grad():
        assert torch.equal(module(**INPUTS).logits, reference(**INPUTS).logits)


def test_from_pretrained_and_the_two_names(tmp_path):
    tiny_opt(seed=3).save_pretrained(tmp_path)
    assert dynkern.OPTForCausalLM is dynkern.hf.OPTForCausalLM
    assert issubclass(dynkern.OPTForCausalLM, transformers.OPTForCausalLM)
    module = dynkern.OPTForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert module.dtype == torch.bfloat16
    assert torch.equal(ids(module), fresh(module))


def test_two_modules_do_not_share_an_engine():
    first, second = model(seed=1), model(seed=2)
    expected = ids(first), ids(second)
    assert not torch.equal(*expected)
    assert torch.equal(ids(first), expected[0]) and torch.equal(ids(second), expected[1])
    config = tiny_config(num_hidden_layers=2)
    assert dynkern.OPTForCausalLM(config).generate(torch.tensor([[2, 5]])).shape == (1, 22)
