"""Fuzz targets: one function of drawn data each, and what must hold of its result.

Bad data must give a one-line ValueError (FileNotFoundError where a file is asked for); anything
else must equal a reference. A crash, another exception, or another result is a finding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from hypothesis import strategies as st

import dynkern
from dynkern import routes
from dynkern.commands.generate import Answering, _changed
from dynkern.data import load_records
from dynkern.llm import LLM
from dynkern.models.opt import spec_from_config
from dynkern.runtime.request import SamplingParams
from fuzz import stored
from fuzz import strategies as draw
from fuzz.refusal import refused
from support.checkpoint import save_checkpoint, save_records
from support.opt import tiny_opt
from support.tolerances import assert_logits_close

LAYERS, VOCABULARY, POSITIONS = 6, 320, 160


class Place:
    """A folder to write in, a checkpoint of 6 layers with its LLM, and what is stored for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored = stored.Stored(folder)
        self.model = save_checkpoint(folder / "model", LAYERS, init_std=0.6)
        self.llm = LLM(self.model)
        self.reference = LLM(self.model, backend="reference")
        self.records = save_records(folder / "good.jsonl").read_text().splitlines()
        self.module = tiny_opt(seed=3)
        self.module.save_pretrained(folder / "tiny")
        self.config = json.loads((folder / "tiny" / "config.json").read_text())


def spec_strings(place: Place, data: st.DataObject) -> None:
    """A policy has one canonical spec, and plans what routes say, or is refused by name."""
    spec = data.draw(draw.SPECS)
    bad, policy = refused(lambda: dynkern.policy(spec), "policy ", "stochastic ", "confidence ")
    if bad:
        return
    assert dynkern.policy(policy.spec).spec == policy.spec and dynkern.policy(policy.spec) == policy
    named = ("uniform", "random", "early_exit ", "stochastic ", "confidence ", "policy ")
    prompts = [[2, 5, 9], [2, 40]]
    options = {"max_new_tokens": 5, "force_length": True, "seed": 7}
    bad, run = refused(lambda: place.llm.run(prompts, policy, **options), *named)
    if bad:
        return
    for completion in run.completions:
        if dynkern.is_planned(policy):
            asked = [
                dynkern.policies.PlanRequest(
                    completion.request_id, completion.prompt_ids, LAYERS, 7
                )
            ]
            want = [4 * int(kept) for kept in policy.plan(asked)[0].tolist()]
            assert completion.layer_counts == want
        assert all(0 < layers <= LAYERS for layers in completion.layers_run)


def json_records(place: Place, data: st.DataObject) -> None:
    """.jsonl and .json of the same values give the same records, or the same refusal."""
    values = data.draw(st.lists(draw.RECORDS, max_size=4))
    found = []
    for suffix, content in (
        (".jsonl", "\n".join(map(json.dumps, values))),
        (".json", "[" + ",\n".join(map(json.dumps, values)) + "]"),
    ):
        file = place.folder / f"drawn{suffix}"
        file.write_text(content)
        found.append(refused(lambda file=file: load_records(file), str(file), "data: "))
    assert found[0] == found[1]
    bad, records = found[0]
    if not bad:
        for value, record in zip(values, records, strict=True):
            for name in ("instruction", "input", "output"):
                assert getattr(record, name) == value[name]
            assert record.references == tuple(value.get("references") or [value["output"]])


def damaged_records(place: Place, data: st.DataObject) -> None:
    """Bytes put anywhere into a good file: refused by file and line, or as Python's json reads."""
    content = "\n".join(place.records[:3]).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        gone = data.draw(st.integers(0, 9))
        content = content[:at] + data.draw(draw.DAMAGE) + content[at + gone :]
    for suffix in (".jsonl", ".json", ".csv"):
        file = place.folder / f"damaged{suffix}"
        file.write_bytes(content)
        bad, records = refused(lambda file=file: load_records(file), str(file), "data: ")
        if suffix == ".jsonl" and not bad:
            lines = [line for line in content.decode("utf-8-sig").split("\n") if line.strip()]
            values = [json.loads(line) for line in lines]
            assert [r.instruction for r in records] == [v["instruction"] for v in values]


def config_json(place: Place, data: st.DataObject) -> None:
    """A config with drawn entries: refused as the model's, or transformers' logits under it."""
    changes = data.draw(draw.CONFIG_CHANGES)
    config = {**place.config, **changes}
    for key in data.draw(st.lists(st.sampled_from(sorted(place.config)), max_size=2)):
        if key not in changes:
            config.pop(key, None)
    bad, spec = refused(lambda: spec_from_config(config), "model: ")
    folder = place.folder / "tiny"
    (folder / "config.json").write_text(json.dumps(config))
    bad_model, llm = refused(lambda: LLM(folder), "model: ")
    assert bad_model or not bad
    if bad_model:
        return
    # all is compared in float64; a list of ends is generate's, and a pad token that is none, which
    # transformers cannot build, nobody's: not the forward's
    others = ("dtype", "eos_token_id", "pad_token_id")
    asked = {k: v for k, v in config.items() if k not in others}
    theirs = transformers.OPTForCausalLM(transformers.OPTConfig(**asked)).eval()
    theirs.load_state_dict(place.module.state_dict(), strict=False)
    prompt = [2, 5, 9]
    with torch.inference_mode(), llm.engine.stepping():
        state = llm.engine.executor.prefill([prompt])
        ours = llm.engine.executor.head.logits(state.hidden, None)[0]
        want = theirs.double()(torch.tensor([prompt])).logits[0, -1]
    assert llm.spec.num_heads == spec.num_heads
    assert_logits_close(ours, want, torch.float32)


def route_tables(place: Place, data: st.DataObject) -> None:
    """Whatever a policy hands out for routes is refused by name, or is exactly what runs."""
    table = data.draw(draw.ROUTES)
    rows = data.draw(st.integers(1, 3))
    bad, kept = refused(
        lambda: routes.check_routes("policy mine", table, rows, LAYERS), "policy mine: "
    )
    if bad:
        return
    assert kept.dtype == torch.bool and kept.shape == (rows, LAYERS)
    assert [list(map(bool, row)) for row in table] == kept.tolist()

    class Mine:
        def plan(self, requests):
            return table

    prompts = [[2, 5 + row] for row in range(rows)]
    run = place.llm.run(prompts, Mine(), max_new_tokens=3, force_length=True)
    assert [c.layer_counts for c in run.completions] == (2 * kept.int()).tolist()
    copies = routes.copy_source(kept.T, torch.ones(rows, dtype=torch.bool))
    for row in range(rows):
        ran = kept[row].nonzero().flatten().tolist()
        for layer in range(LAYERS):
            below = [other for other in ran if other < layer]
            want = -1 if kept[row, layer] else max(below) if below else min(ran)
            assert int(copies[layer, row]) == want


def batches(place: Place, data: st.DataObject) -> None:
    """Rows of any batch are what they are alone; on both backends they are as long."""
    rows = data.draw(st.lists(draw.ROWS, min_size=1, max_size=6))
    prompts = [prompt for prompt, _, _ in rows]
    policies = [policy for _, policy, _ in rows]
    options = {
        "max_new_tokens": data.draw(st.integers(1, 12)),
        "kv_fill": data.draw(st.sampled_from(routes.KV_FILLS)),
        "seed": data.draw(st.integers(0, 2**64 - 1)),
        "force_length": data.draw(st.booleans()),
        "sampling": SamplingParams(*data.draw(draw.GOOD_SAMPLING)),
    }
    ids = data.draw(
        st.lists(st.integers(0, 2**63 - 1), min_size=len(rows), max_size=len(rows), unique=True)
    )
    size = data.draw(st.integers(1, 8))
    run = place.llm.run(prompts, policies, batch_size=size, request_ids=ids, **options)
    for completion, prompt, policy, id in zip(run.completions, prompts, policies, ids, strict=True):
        (alone,) = place.llm.run([prompt], policy, request_ids=[id], **options).completions
        assert completion == alone
        assert 1 <= len(alone.token_ids) <= options["max_new_tokens"]
        assert all(0 <= token < VOCABULARY for token in alone.token_ids)
        if options["force_length"]:
            assert len(alone.token_ids) == options["max_new_tokens"]


def run_arguments(place: Place, data: st.DataObject) -> None:
    """Arguments of LLM.run of any kind: refused by name, or a run that keeps to them."""
    given = data.draw(draw.ARGUMENTS)
    names = ("max_new_tokens", "batch_size", "seed", "prefill", "kv_fill", "force_length")
    names += ("request_ids", "requests", "prompt", "on_token", "sampling", "policy", "text")
    names += ("uniform", "random", "early_exit", "stochastic", "confidence")
    bad, run = refused(
        lambda: place.llm.run(**{"prompts": [[2, 5]], "max_new_tokens": 2, **given}), *names
    )
    if not bad:
        most = given.get("max_new_tokens", 2)
        if isinstance(most, list):  # one for each prompt
            most = max(most, default=1)
        assert isinstance(most, int) and not isinstance(most, bool)
        assert all(1 <= len(c.token_ids) <= most for c in run.completions)


def sampling_parameters(place: Place, data: st.DataObject) -> None:
    """Refused by name, or drawn from the tokens that the parameters leave."""
    given = data.draw(draw.SAMPLING)
    names = ("temperature: ", "top_k: ", "top_p: ", "repetition_penalty: ")
    bad, params = refused(lambda: SamplingParams(**given), *names)
    if bad:
        return
    for name, value in given.items():
        assert math.isfinite(value) and not isinstance(value, bool), name
    options = {"max_new_tokens": 4, "sampling": params, "seed": data.draw(st.integers(0, 9))}
    prompt = data.draw(draw.PROMPTS)
    (done,) = place.llm.run([prompt], **options).completions
    assert all(0 <= token < VOCABULARY for token in done.token_ids)
    # one token left: arg-max of the penalised logits
    if params.top_k == 1 or 0 < params.temperature <= 1e-6:
        greedy = SamplingParams(repetition_penalty=params.repetition_penalty)
        (want,) = place.llm.run([prompt], max_new_tokens=4, sampling=greedy).completions
        assert done.token_ids == want.token_ids


def budgets(place: Place, data: st.DataObject) -> None:
    """Routes of a budget have it, are nested over budgets, and anything else is refused."""
    layers, budget = data.draw(draw.COUNTS), data.draw(draw.COUNTS)
    names = ("uniform budget: ", "num_layers: ")
    bad, route = refused(lambda: routes.uniform(layers, budget), *names)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (layers, budget))
    assert bad == (not whole or not 1 <= budget <= layers)
    if bad:
        return
    assert int(route.sum()) == budget and bool(route[0])
    if budget > 1:
        assert bool((routes.uniform(layers, budget - 1) <= route).all())
        assert bool(route[-1])
    assert int(routes.early_exit(layers, budget - 1).sum()) == budget


def loop_commands(place: Place, data: st.DataObject) -> None:
    """A command of the interactive loop changes what it names, or is refused."""
    name = data.draw(st.sampled_from(["/policy", "/max", "/temperature", "/seed"]))
    value = data.draw(
        st.one_of(st.text(max_size=8), draw.SPECS, st.integers().map(str), st.floats().map(str))
    )
    how = Answering()

    def change() -> Answering:
        changed = _changed(how, name, value)
        changed.check(place.llm)
        return changed

    names = (name, "max_new_tokens", "temperature", "seed", "policy", "uniform", "random")
    bad, changed = refused(change, *names, "early_exit", "stochastic", "confidence", "prefill")
    if not bad:
        assert changed != how or value.strip() or name != "/policy"


TARGETS: dict[str, Callable[[Place, st.DataObject], None]] = {
    target.__name__: target
    for target in (
        spec_strings,
        json_records,
        damaged_records,
        config_json,
        route_tables,
        batches,
        run_arguments,
        sampling_parameters,
        budgets,
        loop_commands,
    )
} | stored.TARGETS
