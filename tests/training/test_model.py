"""The training model under routes computes what "compute every layer, then mask" says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dynkern import routes
from dynkern.evaluation.compute_then_mask import masked_logits
from dynkern.training.data import Collator, Example
from dynkern.training.gates import Gates, gumbel_noise, soft_gate, straight_through
from dynkern.training.model import OPTForCausalLM, Regime
from support.opt import tiny_config, tiny_opt

LAYERS = 6


def _model(**overrides) -> OPTForCausalLM:
    reference = tiny_opt(dropout=0.0, attention_dropout=0.0, **overrides)
    model = OPTForCausalLM(reference.config)
    model.load_state_dict(reference.state_dict())
    return model.double().eval()


def _batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    examples = [
        Example([2, *torch.randint(4, 131, (n,), generator=generator).tolist(), 2], prompt, place)
        for place, (n, prompt) in enumerate(((11, 5), (7, 3), (15, 9)))
    ]
    return Collator(1)(examples)


def _expected(model: OPTForCausalLM, batch: dict, keep_of) -> torch.Tensor:
    """Loss by the yardstick, row by row, unpadded; keep_of(prompt_length, tokens) -> [T, L]."""
    losses = []
    for ids, labels, prompt, _ in zip(*batch.values(), strict=True):
        count = int((labels != -100).sum() + prompt)
        logits = masked_logits(model, ids[:count], keep_of(int(prompt), count))
        losses.append(F.cross_entropy(logits[prompt - 1 : -1], ids[prompt:count], reduction="sum"))
    return torch.stack(losses).sum() / (batch["labels"] != -100).sum()


@pytest.mark.parametrize(
    "variant", [{}, {"do_layer_norm_before": False, "word_embed_proj_dim": 24}]
)
@pytest.mark.parametrize("prefill", ["full", "routed"])
def test_the_loss_under_a_route_is_that_of_compute_then_mask(variant, prefill):
    model, batch = _model(**variant), _batch()
    route = routes.from_layers([0, 2, 5], LAYERS)

    def keep(prompt: int, tokens: int) -> torch.Tensor:
        table = route.repeat(tokens, 1)
        if prefill == "full":
            table[:prompt] = True
        return table

    plain = _expected(model, batch, lambda prompt, tokens: torch.ones(tokens, LAYERS).bool())
    assert torch.allclose(model(**batch).loss, plain, rtol=1e-10)
    model.train_under(Regime(tuple(route.tolist()), prefill))
    loss = model(**batch).loss
    assert torch.allclose(loss, _expected(model, batch, keep), rtol=1e-10)
    assert abs(loss - plain) > 1e-3
    assert torch.allclose(model.last["nll"].sum() / model.last["tokens"].sum(), loss)


def test_skipped_layers_are_frozen_and_the_others_learn():
    model = _model()
    model.train_under(Regime(tuple(routes.from_layers([0, 2, 5], LAYERS).tolist())))
    model.train()
    model(**_batch()).loss.backward()
    for place, layer in enumerate(model.model.decoder.layers):
        gradients = [p.grad for p in layer.parameters()]
        if place in (0, 2, 5):
            assert all(g is not None and g.abs().sum() > 0 for g in (layer.fc1.weight.grad,))
        else:
            assert gradients == [None] * len(gradients)


def test_layerdrop_leaves_out_the_same_layers_whenever_a_step_is_made():
    model, batch = _model(), _batch()
    model.train_under(Regime(layerdrop=0.5, seed=3))
    model.train()
    losses = {}
    for step in (0, 1, 2, 1, 0):
        model.clock = (step, 0)
        losses.setdefault(step, []).append(float(model(**batch).loss.detach()))
    assert losses[0][0] == losses[0][1] and losses[1][0] == losses[1][1]
    assert len({v[0] for v in losses.values()}) == 3
    model.eval()
    full = _expected(model, batch, lambda prompt, tokens: torch.ones(tokens, LAYERS).bool())
    assert torch.allclose(model(**batch).loss, full, rtol=1e-10)


def test_exit_losses_are_those_of_early_exits():
    model, batch = _model(), _batch()

    def to(layer: int) -> torch.Tensor:
        route = routes.early_exit(LAYERS, layer)
        return _expected(model, batch, lambda prompt, tokens: route.repeat(tokens, 1))

    model.train_under(Regime(exit_loss=0.25, exit_layers=(1, 3)))
    model.train()
    expected = 0.75 * to(5) + 0.25 * (to(1) + to(3)) / 2
    assert torch.allclose(model(**batch).loss, expected, rtol=1e-10)


def test_checkpointed_layers_give_the_same_gradients():
    gradients = []
    for checkpointed in (False, True):
        model = _model()
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        model.add_gates(Gates("hidden", LAYERS, 48).double(), alpha=0.5)
        model(**_batch()).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["hidden", "fixed", "position", "token"])
@pytest.mark.parametrize("depth", [1, 3])
def test_gates_route_the_response_and_their_cost_is_the_executed_fraction(kind, depth):
    torch.manual_seed(1)
    model, batch = _model(), _batch()
    gates = Gates(kind, LAYERS, 48, depth, width=16).double()
    for mlp in gates.layers.values():
        torch.nn.init.normal_(mlp[-1].weight)
        torch.nn.init.zeros_(mlp[-1].bias)
    model.add_gates(gates, alpha=0.7)
    model.eval()
    seen: dict[int, torch.Tensor] = {}
    gate = gates.forward

    def noted(layer, x, noise):
        seen[layer] = gate(layer, x, noise)
        return seen[layer]

    gates.forward = noted
    loss = model(**batch).loss
    ran = torch.ones(3, LAYERS, batch["input_ids"].shape[1], dtype=torch.bool)
    for layer, bits in seen.items():
        ran[:, layer] = bits.bool()
    row = iter(range(3))

    def keep(prompt: int, tokens: int) -> torch.Tensor:
        table = ran[next(row), :, :tokens].T.clone()
        table[:prompt] = True
        return table

    plain = _expected(model, batch, keep)
    counted = model.last["routed"].sum()
    assert counted == (batch["labels"] != -100).sum() - 3
    fraction = model.last["ran"].sum() / counted / LAYERS
    assert sorted(seen) == [1, 2, 3, 4]
    assert 2 / LAYERS <= fraction < 1
    assert torch.allclose(loss, plain + 0.7 * fraction, rtol=1e-10)


def test_gate_gradients_hold_in_float64_and_honour_tau():
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    noise = _noise(torch.arange(12).view(4, 3))
    for tau in (0.3, 1.0, 4.0):
        assert torch.autograd.gradcheck(lambda x, t=tau: soft_gate(x, noise, t), (logits,))
        weights = torch.randn(4, 3, dtype=torch.float64)
        bits = straight_through(logits, noise, tau)
        assert set(bits.detach().flatten().tolist()) <= {0.0, 1.0}
        (hard,) = torch.autograd.grad((bits * weights).sum(), logits)
        (soft,) = torch.autograd.grad((soft_gate(logits, noise, tau) * weights).sum(), logits)
        assert torch.equal(hard, soft)
        share = soft_gate(logits, noise, tau).detach()
        assert torch.allclose(hard[..., 1], weights * share * (1 - share) / tau)
    gates = Gates("hidden", 3, 5, depth=3, width=4).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    parameters = tuple(gates.parameters())
    names = [name for name, _ in gates.named_parameters()]

    def of_parameters(*values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(
            _Logits(gates), {f"gates.{n}": v for n, v in state.items()}, (x,)
        )

    assert torch.autograd.gradcheck(of_parameters, parameters)


class _Logits(torch.nn.Module):
    def __init__(self, gates: Gates) -> None:
        super().__init__()
        self.gates = gates

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gates.logits(1, x)


def _noise(record: torch.Tensor, token: int = 0, layer: int = 1, step: int = 0) -> torch.Tensor:
    return gumbel_noise(0, step, record, torch.tensor(token), torch.tensor(layer))


def test_gumbel_noise_makes_bits_that_follow_the_softmax():
    noise = _noise(torch.arange(40_000))
    share = straight_through(torch.tensor([0.0, 1.2]).expand(40_000, 2), noise, tau=0.5).mean()
    # four standard deviations of a mean of 40,000 bits
    assert abs(float(share) - float(torch.tensor(1.2).sigmoid())) < 0.01
    # of every counter its own
    draws = [noise, _noise(torch.arange(40_000), token=1), _noise(torch.arange(40_000), layer=2)]
    draws.append(_noise(torch.arange(40_000), step=1))
    drawn = torch.stack(draws).flatten(1)
    assert drawn.isfinite().all()
    assert torch.corrcoef(drawn).sub(torch.eye(4)).abs().max() < 0.02


def test_gates_draw_alike_in_whatever_batch_a_record_is():
    batch, bits = _batch(), []
    alone = {name: tensor[1:2] for name, tensor in batch.items()}
    width = int((alone["labels"] != -100).nonzero()[:, 1].max()) + 1
    alone |= {name: alone[name][:, :width] for name in ("input_ids", "labels")}
    for step, rows in ((7, batch), (7, alone), (8, alone)):
        torch.manual_seed(0)
        model = _model().train()
        model.add_gates(Gates("fixed", LAYERS, 48).double(), alpha=0.5)
        for mlp in model.gates.layers.values():
            torch.nn.init.zeros_(mlp[-1].bias)
        model.clock = (step, 0)
        model(**rows)
        bits.append(model.last["ran"][:, -2 if rows is batch else 0])
    assert torch.equal(bits[0], bits[1])
    assert not torch.equal(bits[1], bits[2])


def test_gates_do_not_push_on_a_residual_they_read():
    model = _model()
    model.train()
    model.add_gates(Gates("hidden", LAYERS, 48).double(), alpha=1.0)
    model.requires_grad_(False)
    model.gates.requires_grad_(True)
    h = torch.randn(2, 4, 48, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.gates(1, h.detach()).sum() + h.sum(), h)
    assert torch.equal(gradient, torch.ones_like(h))
    model(**_batch()).loss.backward()
    assert all(p.grad is not None for p in model.gates.parameters())
    assert all(p.grad is None for p in model.model.parameters())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Gates("nothing", 6, 48), "input: got 'nothing'"),
        (lambda: Gates("hidden", 6, 48, depth=4), "depth: got 4"),
        (lambda: Gates("hidden", 6, 48, width=0), "width: got 0"),
        (lambda: Gates("hidden", 6, 48, tau=0.0), "tau: got 0.0"),
        (lambda: Gates("hidden", 6, 48, tau=float("nan")), "tau: got nan"),
        (lambda: Gates("hidden", 2, 48), "the model has 2 layers"),
        (lambda: _model().add_gates(Gates("hidden", 5, 48), 1.0), "made for 5 layers"),
        (lambda: _model().train_under(Regime(layerdrop=1.0)), "layerdrop: got 1.0"),
        (lambda: _model().train_under(Regime(exit_loss=-0.1)), "exit_loss: got -0.1"),
        (lambda: _model().train_under(Regime(exit_loss=0.1, exit_layers=(5,))), "exit_layer"),
        (lambda: _model().train_under(Regime(prefill="half")), "prefill: got 'half'"),
        (lambda: _model().train_under(Regime((True,) * 5)), "route"),
    ],
)
def test_bad_input_is_said_in_one_line(make, text):
    with pytest.raises(ValueError, match=text) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_names_and_files_are_those_of_transformers(tmp_path):
    model = OPTForCausalLM(tiny_config())
    assert list(model.state_dict()) == list(tiny_opt().state_dict())
    model.save_pretrained(tmp_path)
    import transformers

    plain = transformers.OPTForCausalLM.from_pretrained(tmp_path)
    assert type(plain.model.decoder.layers[0]).__name__ == "OPTDecoderLayer"
    assert plain.config.architectures == ["OPTForCausalLM"]
