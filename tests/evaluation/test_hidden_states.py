"""`dynkern analyze`: its distances, losses and layer facts are those of transformers' own pass."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import transformers

from dynkern import routes
from dynkern.cli import main
from dynkern.evaluation.compute_then_mask import masked_logits
from dynkern.evaluation.hidden_states import (
    HiddenStatesConfig,
    layer_facts,
    planned_routes,
    route_effects,
    teacher_forced_batches,
)
from dynkern.evaluation.planned_quality import planned_specs
from support.checkpoint import save_checkpoint, save_records

LAYERS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("analyze")
    save_checkpoint(directory / "model", LAYERS)
    save_records(directory / "data.jsonl", 20)
    return directory


def _batches(place: Path):
    config = HiddenStatesConfig(
        str(place / "model"), str(place / "data.jsonl"), "all", 5, "plain", 140, batch_size=3
    )
    model, batches = teacher_forced_batches(config)
    return model.double(), batches


def _quiet(done: int, total: int, label: str) -> None:
    pass


def test_losses_and_distances_are_those_of_compute_then_mask(place):
    model, batches = _batches(place)
    distances, losses = route_effects(model, batches, 1, 0, _quiet)
    assert len(distances) == 3 * LAYERS and all(len(v) == 5 for v in distances.values())
    yardstick = transformers.OPTForCausalLM.from_pretrained(place / "model").double().eval()
    head = torch.linalg.pinv(yardstick.lm_head.weight.detach())
    for family, budget in (("uniform", 2), ("early_exit", 3), ("random", 1)):
        sequence, nll, count = 0, 0.0, 0
        for batch in batches:
            parts = (batch[name] for name in ("input_ids", "labels", "prompt_length"))
            for ids, labels, prompt in zip(*parts, strict=True):
                prompt = int(prompt)
                tokens = prompt + int((labels != -100).sum())
                table = planned_routes(family, budget, LAYERS, sequence, 1, 0, 0)[:, 0]
                keep = table.repeat(tokens, 1)
                keep[:prompt] = True
                with torch.no_grad():
                    routed = masked_logits(yardstick, ids[:tokens], keep)[prompt:-1]
                    full = masked_logits(yardstick, ids[:tokens], torch.ones_like(keep))
                # the head has more rows than columns: its inputs can be had back from logits
                states = routed @ head.T, full[prompt:-1] @ head.T
                expected = (1 - torch.cosine_similarity(*states, dim=-1)).mean()
                found = distances[family, budget][sequence]
                assert found == pytest.approx(float(expected), abs=1e-8)
                targets = ids[prompt + 1 : tokens]
                nll += float(torch.nn.functional.cross_entropy(routed, targets, reduction="sum"))
                count += len(targets)
                sequence += 1
        assert losses[f"{family}:{budget}"] == pytest.approx(nll / count, rel=1e-9)
    assert max(distances["uniform", LAYERS]) < 1e-12
    assert distances["early_exit", 1] == pytest.approx(distances["uniform", 1])


def test_layer_facts_are_those_of_transformers_hidden_states(place):
    model, batches = _batches(place)
    rows = layer_facts(model, batches, _quiet)
    yardstick = transformers.OPTForCausalLM.from_pretrained(place / "model").double().eval()
    ratios = [[] for _ in range(LAYERS)]
    zero = [[] for _ in range(LAYERS)]
    seen = {}
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            here = (labels != -100).nonzero().flatten()
            ids = ids[: int(here[-1]) + 1]
            seen.clear()
            hooks = [
                layer.fc2.register_forward_pre_hook(lambda m, a, at=at: seen.update({at: a[0]}))
                for at, layer in enumerate(yardstick.model.decoder.layers)
            ]
            inputs = [
                layer.register_forward_pre_hook(
                    lambda m, a, at=at: seen.update({("in", at): a[0][0]})
                )
                for at, layer in enumerate(yardstick.model.decoder.layers)
            ]
            outputs = [
                layer.register_forward_hook(
                    lambda m, a, out, at=at: seen.update(
                        {("out", at): (out[0] if isinstance(out, tuple) else out)[0]}
                    )
                )
                for at, layer in enumerate(yardstick.model.decoder.layers)
            ]
            with torch.no_grad():
                yardstick(ids[None])
            for hook in (*hooks, *inputs, *outputs):
                hook.remove()
            for layer in range(LAYERS):
                x, y = seen["in", layer][here], seen["out", layer][here]
                ratios[layer] += ((y - x).norm(dim=-1) / x.norm(dim=-1)).tolist()
                zero[layer] += (seen[layer].view(len(ids), -1)[here] == 0).double().mean(1).tolist()
    for row in rows:
        layer = row["layer"]
        assert row["update_ratio"] == pytest.approx(sum(ratios[layer]) / len(ratios[layer]))
        assert row["ffn_zero"] == pytest.approx(sum(zero[layer]) / len(zero[layer]))
        assert row["update_ratio_p10"] < row["update_ratio"] < row["update_ratio_p90"] * 1.5


def test_random_routes_are_those_of_the_policy():
    from dynkern.policies import policy
    from dynkern.runtime.request import PlanRequest

    requests = [PlanRequest(i, [2], LAYERS, 7) for i in (3, 4, 5)]
    planned = torch.stack(list(policy("random:2").plan(requests)), dim=1)
    assert torch.equal(planned_routes("random", 2, LAYERS, 3, 3, 0, 7), planned)
    assert torch.equal(
        planned_routes("early_exit", 2, LAYERS, 0, 2, 0, 0)[:, 1], routes.early_exit(LAYERS, 1)
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


COMMON = "--model {p}/model --data {p}/data.jsonl --template plain --output {out} --limit 4"


def _run(place: Path, out: Path, name: str, options: str) -> int:
    words = f"analyze {name} {COMMON} {options}".split()
    return main([word.format(p=place, out=out) for word in words])


def test_hidden_states_leaves_tables_and_plots(place, tmp_path):
    assert _run(place, tmp_path, "hidden-states", "--split all --max-length 140 --draws 2") == 0
    rows = _rows(tmp_path / "cosine.csv")
    assert len(rows) == 3 * LAYERS
    for row in rows:
        assert float(row["ci_low"]) <= float(row["cosine_distance"]) <= float(row["ci_high"])
        assert int(row["sequences"]) == (8 if row["family"] == "random" else 4)
    assert len(_rows(tmp_path / "layers.csv")) == LAYERS
    assert all((tmp_path / f"{n}.png").stat().st_size > 1000 for n in ("cosine", "layers"))


def test_quality_covers_every_planned_policy(place, tmp_path):
    options = "--split all --max-length 140 --max-new-tokens 5"
    assert _run(place, tmp_path, "quality", options) == 0
    rows = {row["policy"]: row for row in _rows(tmp_path / "quality.csv")}
    assert list(rows) == ["full", *planned_specs(LAYERS)]
    assert rows["full"]["agreement_with_full"] == "1.0" and rows["full"]["loss"]
    for row in rows.values():
        assert float(row["mean_layers"]) == int(row["budget"])
        assert bool(row["loss"]) == (row["family"] != "uniform-even")
    assert rows["early_exit:0"]["loss"] == rows["uniform:1"]["loss"]
    assert (tmp_path / "quality.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--draws 0", "draws: got 0"),
        ("--split dev", "split: got 'dev'"),
        ("--template chat", "template: got 'chat'"),
        ("--max-length 4000", "max_length: got 4000"),
        ("--seed -1", "seed: got -1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, capsys, options, text):
    assert _run(place, tmp_path / "out", "hidden-states", options) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("dynkern: ")] == lines[-1:]
    assert text in lines[-1]
