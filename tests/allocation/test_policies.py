"""oracle:, predictor: and histogram: as policies of LLM and of `dynkern eval`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dynkern
from dynkern.allocation.predictor import load_predictor
from dynkern.allocation.table import load_table
from dynkern.cli import main
from dynkern.data import encode_prompt, load_records
from dynkern.evaluation.oracle import OracleConfig, run_oracle
from dynkern.llm import LLM
from dynkern.policies import is_planned
from dynkern.runtime.request import PlanRequest
from support.checkpoint import save_checkpoint, save_records

COUNT, LAYERS, NEW = 40, 6, 12


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, data whose prompts differ, a table and a predictor trained on it."""
    directory = tmp_path_factory.mktemp("policies")
    save_checkpoint(directory / "model", num_layers=LAYERS)
    save_checkpoint(directory / "deeper", num_layers=LAYERS + 1)
    save_records(directory / "data.jsonl", COUNT)
    records = [json.loads(line) for line in (directory / "data.jsonl").read_text().splitlines()]
    for i, record in enumerate(records):
        record["input"] += " " + "river " * (i // 7) + chr(97 + i % 26)
    write(directory / "data.jsonl", records)
    # the right answer is what some depth says, so that depths differ in quality
    llm = LLM(directory / "model")
    for i, record in enumerate(load_records(directory / "data.jsonl")):
        ids = encode_prompt(llm.tokenizer, record, "plain", 150, 2).ids
        said = [llm.generate([ids], f"uniform:{k + 1}", max_new_tokens=NEW)[0] for k in range(6)]
        records[i]["references"] = [said[i % LAYERS].text + f" {i}"]
    write(directory / "data.jsonl", records)
    run_oracle(
        OracleConfig(
            f"{directory}/model",
            f"{directory}/data.jsonl",
            template="plain",
            max_new_tokens=NEW,
            output=directory / "table",
            losses=False,
        )
    )
    words = f"train-predictor {directory}/table --output {directory}/predictor --budget 3"
    assert main([*words.split(), "--train-share", "0.6", "--resamples", "20"]) == 0
    return directory


@pytest.fixture(scope="module")
def llm(place) -> LLM:
    return LLM(place / "model")


@pytest.fixture(scope="module")
def prompts(place, llm) -> list[list[int]]:
    records = load_records(place / "data.jsonl")
    return [encode_prompt(llm.tokenizer, r, "plain", 150, 2).ids for r in records]


def layers_run(llm, prompts, policy, **options) -> list[float]:
    done = llm.generate(prompts, policy, max_new_tokens=NEW, force_length=True, **options)
    return [completion.mean_layers for completion in done]


def test_the_oracle_gives_each_prompt_its_route(place, llm, prompts):
    table = load_table(place / "table")
    assert len(set(table.digests)) == COUNT
    assert len(set(table.mean_quality.argmax(axis=1).tolist())) >= 4  # depths differ in quality
    for budget, mean in (("3", 3.0), ("0.5", 3.0), ("1", 1.0)):
        spec = f"oracle:{budget}@{place}/table"
        policy = dynkern.policy(spec)
        assert policy.spec == spec and is_planned(policy)
        ran = layers_run(llm, prompts, policy)
        assert np.mean(ran) <= mean + 1e-9
        quality = table.mean_quality[np.arange(COUNT), np.array(ran).astype(int) - 1]
        assert quality.mean() >= table.mean_quality[:, int(mean) - 1].mean() - 1e-9
    order = torch.randperm(COUNT).tolist()
    shuffled = layers_run(llm, [prompts[i] for i in order], policy, batch_size=3)
    assert shuffled == [ran[i] for i in order]


def test_the_oracle_at_equal_quality_scores_as_full_depth(place, llm, prompts):
    from dynkern.evaluation.rouge import score

    policy = f"oracle:equal@{place}/table"
    records = load_records(place / "data.jsonl")
    means = []
    for spec in (policy, "full"):
        done = llm.generate(prompts, spec, max_new_tokens=NEW)
        scores = [score(d.text, r.references)["rougeL"] for d, r in zip(done, records, strict=True)]
        means.append(np.mean(scores))
    assert means[0] >= means[1] - 1e-12


def test_an_unknown_prompt_is_an_error_that_says_what_to_do(place, llm):
    with pytest.raises(ValueError, match="not in the table; fill one with the same") as caught:
        llm.generate(["something else"], f"oracle:3@{place}/table")
    assert "\n" not in str(caught.value)


def test_the_predictor_sees_the_prompt_only(place, llm, prompts):
    predictor = load_predictor(place / "predictor")
    assert predictor.state_size == llm.spec.embed_size
    table = load_table(place / "table")
    predicted = predictor.predict([len(p) for p in prompts], table.states.astype(np.float64))
    expected = table.costs[predictor.choose(predicted, table.digests)].tolist()
    assert layers_run(llm, prompts, f"predictor:{place}/predictor") == expected
    # alone and in any company
    for i in (0, 7, 21):
        assert layers_run(llm, [prompts[i]], f"predictor:{place}/predictor") == [expected[i]]
    assert layers_run(llm, ["something else"], f"predictor:{place}/predictor")[0] >= 1
    least = layers_run(llm, prompts, f"predictor:1@{place}/predictor")
    assert np.mean(least) <= np.mean(expected)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_predictor_runs_on_every_backend(place, prompts, backend):
    ran = layers_run(
        LLM(place / "model", backend=backend), prompts[:4], f"predictor:{place}/predictor"
    )
    assert all(1 <= layers <= LAYERS for layers in ran)


def test_the_predictor_needs_a_full_prefill(place, llm, prompts):
    with pytest.raises(ValueError, match="use prefill='full'"):
        llm.generate(prompts[:2], f"predictor:{place}/predictor", prefill="routed")
    layers_run(llm, prompts[:2], f"oracle:3@{place}/table", prefill="routed")
    layers_run(llm, prompts[:2], f"histogram:{place}/predictor", prefill="routed")


@pytest.mark.parametrize("spec", ["histogram:{p}/predictor", "histogram:3@{p}/table"])
def test_the_histogram_is_that_of_its_source_at_random(place, spec):
    policy = dynkern.policy(spec.format(p=place))
    requests = [PlanRequest(i, (2, 3), LAYERS, 7) for i in range(4000)]
    drawn = np.bincount([int(r.sum()) for r in policy.plan(requests)], minlength=LAYERS + 1)
    if "@" in spec:
        oracle = dynkern.policy(f"oracle:3@{place}/table")
        expected = np.bincount(list(oracle.choice.values()), minlength=LAYERS) / COUNT
    else:
        expected = load_predictor(place / "predictor").histogram
    assert drawn[1:] / 4000 == pytest.approx(expected, abs=0.03)
    assert (drawn[1:][expected == 0] == 0).all()
    again = policy.plan(requests[5:])
    assert all(torch.equal(a, b) for a, b in zip(again, policy.plan(requests)[5:], strict=True))
    other = policy.plan([PlanRequest(i, (2, 3), LAYERS, 8) for i in range(4000)])
    assert any(not torch.equal(a, b) for a, b in zip(again, other[5:], strict=True))


def test_eval_takes_them_like_any_policy(place, tmp_path):
    words = f"eval --model {place}/model --data {place}/data.jsonl --template plain --limit 6"
    words += f" --max-new-tokens 12 --no-timing --output {tmp_path}/out"
    specs = [f"oracle:3@{place}/table", f"predictor:{place}/predictor"]
    specs += [f"histogram:{place}/predictor"]
    for spec in specs:
        words += f" --policy {spec}"
    assert main(words.split()) == 0
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert [run["policy"] for run in runs] == ["full", *specs]
    assert all(run["rougeL"] is not None for run in runs)


def test_allocate_elsewhere_and_not_over_another_report(place, tmp_path, capsys):
    assert main(["allocate", f"{place}/table", "--output", str(tmp_path / "a")]) == 0
    for name in ("results.json", "curve.csv", "routes.csv", "groups.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (place / "table" / name).read_bytes()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text('{"runs": []}')
    capsys.readouterr()
    assert main(["allocate", f"{place}/table", "--output", str(tmp_path / "b")]) == 2
    assert "holds another report; take another --output" in capsys.readouterr().err
    assert (tmp_path / "b" / "results.json").read_text() == '{"runs": []}'


def test_the_report_of_a_predictor(place):
    report = json.loads((place / "predictor" / "report.json").read_text())
    ways = {"oracle", "predictor", "histogram", "one_route", "full"}
    gaps = {"oracle_minus_predictor", "predictor_minus_histogram", "predictor_minus_one_route"}
    assert set(report["at_budget"]) == ways | gaps
    for point in report["at_budget"].values():
        assert point["ci"][0] <= point["ci"][1]
    assert report["test_prompts"] + report["predictor"]["train_prompts"] == COUNT
    header = (place / "predictor" / "gap.csv").read_text().splitlines()[0].split(",")
    assert header[:4] == ["mean_layers", "oracle", "oracle_low", "oracle_high"]
    header = (place / "predictor" / "groups.csv").read_text().splitlines()[0]
    assert "predictor_layers" in header and "oracle_quality" in header
    for name in ("gap.png", "groups.png"):
        assert (place / "predictor" / name).read_bytes()[:4] == b"\x89PNG"


GENERATE = "generate --model {p}/model --prompt hello --policy "
BAD = [
    (f"{GENERATE}oracle:", "malformed, expected oracle:BUDGET@TABLE"),
    (f"{GENERATE}oracle:3", "malformed, expected oracle:BUDGET@TABLE"),
    (f"{GENERATE}oracle:3@", "malformed"),
    (f"{GENERATE}oracle:some@{{p}}/table", "budget: got 'some', expected mean layers"),
    (f"{GENERATE}oracle:7@{{p}}/table", "budget: got '7', expected mean layers from 1 to 6"),
    (f"{GENERATE}oracle:0.1@{{p}}/table", "expected 1 or more"),
    (f"{GENERATE}oracle:3@{{p}}/absent", "no file {p}/absent"),
    (f"{GENERATE}oracle:3@{{p}}/data.jsonl", "damaged or no table"),
    (f"{GENERATE}oracle:3@{{p}}/table", "not in the table"),
    (f"{GENERATE}predictor:", "malformed, expected predictor:[BUDGET@]PATH"),
    (f"{GENERATE}predictor:{{p}}/absent", "no file {p}/absent/predictor.json"),
    (f"{GENERATE}predictor:9@{{p}}/predictor", "budget: got '9'"),
    (f"{GENERATE}histogram:{{p}}/table", "no file {p}/table/predictor.json"),
    (
        "generate --model {p}/deeper --prompt x --policy predictor:{p}/predictor",
        "made for 6 layers, but the model has 7",
    ),
    ("allocate {p}/absent", "no file {p}/absent, expected a table"),
    ("allocate {p}/data.jsonl", "damaged or no table"),
    ("merge {p}/absent", "no file {p}/absent"),
    ("train-predictor {p}/absent --output {p}/x", "no file {p}/absent"),
    ("train-predictor {p}/table --output {p}/predictor", "already holds a predictor"),
    ("train-predictor {p}/table --output {p}/x --head tree", "head: got 'tree'"),
    ("train-predictor {p}/table --output {p}/x --budget 12", "budget: got '12'"),
    ("train-predictor {p}/table --output {p}/x --train-share 0.01", "expected 10 or more"),
    ("train-predictor {p}/table --output {p}/x --train-share 2", "train_share: got 2"),
]


@pytest.mark.parametrize(("line", "named"), BAD, ids=[f"{i}-{b[1]}" for i, b in enumerate(BAD)])
def test_bad_input_is_one_line(place, capsys, line, named):
    capsys.readouterr()
    assert main(line.format(p=place).split()) == 2
    complaint = capsys.readouterr().err.strip().splitlines()
    assert len(complaint) == 1 and complaint[0].startswith("dynkern: ")
    assert named.format(p=place) in complaint[0]
    assert not (place / "x").exists()
