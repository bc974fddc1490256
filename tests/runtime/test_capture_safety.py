"""Nothing in a captured pass needs the host: shown with tensors that have no values, on a device
that is not the host, and by what replays leave in place. And how many ops a layer is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dynkern import routes
from dynkern.llm import LLM
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights
from dynkern.policies import policy
from dynkern.runtime.batch import DecodeBatch
from dynkern.runtime.executors import decode_pass
from dynkern.runtime.executors.graph_pool import GraphPool, PoolEntry
from dynkern.runtime.executors.layers import DecoderLayers
from dynkern.runtime.executors.recorded_graphs import HostSync, Recorder, refuse_host
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.request import SamplingParams
from dynkern.runtime.sampling import TokenPicker
from support.graphs import on_graphs
from support.opt import random_prompts, save_opt

LAYERS, HIDDEN, HEADS, FFN, VOCAB = 4, 48, 3, 92, 131
SAMPLED = SamplingParams(0.9, 20, 0.9, 1.2)
PASSES = [(None, "project"), ("confidence:top_prob=0.5", "mask")]
PASSES += [(f"confidence:cosine=0.5,exits={e}", "project") for e in ("0", "1+2")]
PASSES += [("stochastic:0.5", fill) for fill in routes.KV_FILLS]
PASSES += [("random-step:2,force_first=1", fill) for fill in ("copy", "deferred")]
LAYER = Counter(
    {"residual_bypass_linear": 2, "ragged_attention": 1, "ragged_linear": 2},
)


class Listing:
    """Graphs that only record: every op of a capture is checked, and none needs to be replayed."""

    runs_reference = True

    def __init__(self) -> None:
        self.names: list[list[str]] = []

    def capture(self, work):
        work()
        with Recorder() as recorder:
            work()
        self.names.append([name.split("::")[1] for name in recorder.names])
        return self

    def replay(self) -> None:
        """Nothing to do."""


def model(pre_norm: bool, rows: int, device: str) -> tuple[DecoderLayers, DecodeBatch, KVCache]:
    """A model without values, and rows that run random layers of it."""

    def weight(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device)

    spec = DecoderSpec(
        **{"vocab_size": VOCAB, "num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": HEADS},
        **{"ffn_size": FFN, "max_positions": 64, "embed_size": HIDDEN, "pre_norm": pre_norm},
        **{"activation": "relu", "bias": True, "norm_affine": True, "final_norm": pre_norm},
        **{"tied_head": True, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1},
    )
    d, f = HIDDEN, FFN
    shapes = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (f, d), (f,), (d, f)]
    layers = [LayerWeights(*(weight(*s) for s in [*shapes, (d,)])) for _ in range(LAYERS)]
    weights = DecoderWeights(
        token_embedding=weight(VOCAB, d),
        position_embedding=weight(66, d),
        project_in=None,
        project_out=None,
        layers=layers,
        final_norm_weight=weight(d),
        final_norm_bias=weight(d),
        lm_head=weight(VOCAB, d),
    )
    where = torch.device(device)
    batch = DecodeBatch(LAYERS, rows, "project", None, 3, where)
    lanes = LAYERS * rows
    cache = KVCache(LAYERS, rows, lanes, HEADS, d // HEADS, 32, torch.bfloat16, where)
    return DecoderLayers(spec, weights), batch, cache


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def entry_of(spec: str | None, kv_fill: str, params: SamplingParams, **sizes) -> PoolEntry:
    layers, batch, cache = model(**sizes)
    batch.kv_fill = kv_fill
    batch.program = None if spec is None else policy(spec).lower(LAYERS)
    picker = TokenPicker(layers.head, params, 0)
    picker.begin(batch.n_slots, 40, batch.alive.device)
    entry = GraphPool(layers, Listing()).entry(batch, cache, picker, 2)
    entry.state.load(batch, cache, picker)
    entry.held = cache
    return entry


def capture(entry: PoolEntry, spec: str | None) -> None:
    if spec is not None:
        entry.token_pass(4)()
        return
    entry.whole_pass([True, False, True, True], 4)()
    entry.layer_by_layer([1, 0, 3, 4], 4)()


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("pre_norm", [True, False], ids=["pre", "post"])
@pytest.mark.parametrize(("spec", "kv_fill"), PASSES)
def test_no_pass_needs_the_host(spec, kv_fill, pre_norm, params):
    entry = entry_of(spec, kv_fill, params, pre_norm=pre_norm, rows=3, device="meta")
    capture(entry, spec)
    assert entry.state.report.token.device.type == "meta"
    # whole pass; embedding, three layers and head; or policy and what it draws
    expected = 6 if spec is None else 1 if "confidence" in spec else 2
    assert len(entry.graphs.names) == expected and all(map(len, entry.graphs.names))


SYNCS = {
    "a value": lambda run: int(run.batch.alive.sum()),
    "a branch": lambda run: run.batch.alive.any() and None,
    "a copy": lambda run: run.batch.token.cpu(),
    "a mask": lambda run: run.batch.token[run.batch.alive],
    "a size": lambda run: run.batch.alive.nonzero(),
    "numbers": lambda run: run.batch.token.add_(
        torch.tensor([1, 2, 3, 4]).to(run.batch.token.device)
    ),
    "a number": lambda run: run.batch.token[:1].copy_(torch.tensor(5)),
}


# on the CPU a copy to the host is none
@pytest.mark.parametrize(
    ("name", "device"),
    [(name, d) for name in SYNCS for d in ("meta", "cpu") if (name, d) != ("a copy", "cpu")],
)
def test_a_pass_with_a_sync_in_it_is_found(monkeypatch, name, device):
    plain = decode_pass.DecodePass._planned

    def planned(self):
        SYNCS[name](self)
        plain(self)

    entry = entry_of(None, "project", SamplingParams(), pre_norm=True, rows=3, device=device)
    monkeypatch.setattr(decode_pass.DecodePass, "_planned", planned)
    # without values most of them fail by themselves
    with pytest.raises(HostSync if device == "cpu" else RuntimeError):
        entry.whole_pass([True] * LAYERS, 4)
    monkeypatch.undo()
    entry.whole_pass([True] * LAYERS, 4)


def test_a_kernel_argument_is_no_sync():
    ones = torch.ones(3)
    refuse_host(torch.ops.aten.add.Tensor, (ones, torch.tensor(2.0)), {})
    refuse_host(torch.ops.aten.index.Tensor, (ones, [torch.tensor([1, 2])]), {})
    with pytest.raises(HostSync, match="^aten::index.Tensor waits for the device"):
        refuse_host(torch.ops.aten.index.Tensor, (ones, [ones > 0]), {})


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_layer_is_five_ops_and_nothing_beside_them(rows):
    entry = entry_of(None, "project", SamplingParams(), pre_norm=True, rows=rows, device="meta")
    for union in ([True, False, False, False], [True, True, False, True]):
        entry.whole_pass(union, 4)
    one, three = (Counter(names) for names in entry.graphs.names)
    # each of the ops is one launch on Triton: tests/kernels/test_triton.py
    assert three - one == Counter({op: 2 * n for op, n in LAYER.items()}) and not one - three
    # what a pass costs whatever its route: four ops, and ten small launches around them
    assert len(entry.graphs.names[0]) - 5 <= 15
    entry.layer_by_layer([rows, 0, 1, rows], 4)
    embed, *layers, head = entry.graphs.names[2:]
    # one launch more hands on to whichever layer comes next
    assert [Counter(layer) for layer in layers] == [LAYER + Counter(["_foreach_copy_"])] * 3
    assert len(embed) <= 8 and len(head) <= 12


def tensors_of(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that hangs on an object."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item, seen)
    elif hasattr(value, "__dict__") and type(value).__module__.startswith("dynkern"):
        yield from tensors_of(vars(value), seen)


@pytest.mark.parametrize("specs", [["uniform:2", "full"], ["random:2"] * 3, "stochastic:0.5"])
@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
def test_what_is_kept_stays_in_its_place(tmp_path, specs, sampling):
    save_opt(tmp_path)
    llm = LLM(tmp_path, backend="reference")
    executor = on_graphs(llm)
    prompts = random_prompts(3 if isinstance(specs, str) else len(specs), seed=1)
    addresses, texts = [], []
    for new_tokens in (12, 12, 5):
        options = {"kv_fill": "deferred", "sampling": sampling, "max_new_tokens": new_tokens}
        # the room of the longest rows is there from the start on
        llm.engine.give_back(llm.engine.take_cache(3, 18, 64))
        texts.append(llm.generate(prompts, specs, seed=3, force_length=True, **options))
        kept = list(tensors_of([executor.pool, llm.engine.executor.weights], set()))
        addresses.append(sorted(t.data_ptr() for t in kept))
        if len(addresses) == 1:
            captured = executor.graphs.captured
    assert len(addresses[0]) > 40 and addresses[0] == addresses[1]
    assert executor.graphs.captured == captured or sampling is not None
    assert [c.token_ids for c in texts[0]] == [c.token_ids for c in texts[1]]
    assert [c.token_ids for c in texts[2]] == [c.token_ids[:5] for c in texts[0]]
