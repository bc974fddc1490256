"""LLM: prompts in, completions out; every option and every way to get it wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dynkern
from dynkern.llm import LLM
from dynkern.runtime.request import SamplingParams
from support.checkpoint import save_checkpoint
from support.errors import one_line_error
from support.greedy import assert_same_greedy
from support.opt import random_prompts, save_opt

NUM_LAYERS = 6
TEXTS = ["the restaurant is near", "Today is", "what is the capital of France? — naïve 日本"]
SHORT = {"max_new_tokens": 3}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # wide logits make a random model wander instead of repeating one token
    return save_checkpoint(tmp_path_factory.mktemp("model"), NUM_LAYERS, init_std=0.6)


@pytest.fixture(scope="module")
def llm(directory: Path) -> LLM:
    return LLM(directory)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A model without tokenizer."""
    directory = tmp_path_factory.mktemp("bare")
    save_opt(directory, seed=1)
    return LLM(directory)


def tokens(completions) -> list[list[int]]:
    return [c.token_ids for c in completions]


def executed(completions) -> list[list[int]]:
    return [c.layer_counts for c in completions]


# -- prompts -------------------------------------------------------------------------------------


def test_text_and_ids_are_the_same_prompt(llm):
    ids = [llm.encode(text) for text in TEXTS]
    by_text, by_ids = llm.generate(TEXTS, **SHORT), llm.generate(ids, **SHORT)
    assert [c.prompt_ids for c in by_text] == ids
    assert tokens(by_text) == tokens(by_ids)
    mixed = llm.generate([TEXTS[0], ids[1], torch.tensor(ids[2])], **SHORT)
    assert tokens(mixed) == tokens(by_ids)


def test_encode_puts_one_bos_ahead(llm):
    plain = llm.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    assert llm.encode(TEXTS[0]) == [2, *plain]
    assert llm.encode("</s>" + TEXTS[0]) == [2, *plain]
    assert llm.encode("") == [2]


def test_ids_are_taken_as_they_are(llm):
    completions = llm.generate([[7, 8], [2, 2, 7], [1]], **SHORT)
    assert [c.prompt_ids for c in completions] == [[7, 8], [2, 2, 7], [1]]


def test_decode_stops_at_eos_and_drops_special_tokens(llm):
    ids = llm.tokenizer("the river", add_special_tokens=False)["input_ids"]
    assert llm.decode([1, *ids, 0, 2, *ids, 2]) == "the river"
    assert llm.decode([2, *ids]) == "" == llm.decode([])
    assert llm.decode(ids) == "the river"


def test_no_prompts(llm):
    result = llm.run([])
    assert result.completions == [] and result.stats.new_tokens == 0


def test_equals_transformers(directory, llm):
    module = dynkern.OPTForCausalLM.from_pretrained(directory).eval()
    prompts = random_prompts(5, seed=3, vocab_size=320)
    want = [
        super(dynkern.OPTForCausalLM, module).generate(torch.tensor([p]), max_new_tokens=12)
        for p in prompts
    ]
    want = [row[0, len(p) :].tolist() for row, p in zip(want, prompts, strict=True)]
    got = tokens(llm.generate(prompts, max_new_tokens=12))
    assert_same_greedy(module, prompts, got, want)
    assert len({token for row in got for token in row}) > 8


# -- what comes back -----------------------------------------------------------------------------


def test_completions_come_in_request_order(llm):
    prompts = random_prompts(7, seed=2, vocab_size=320)
    run = llm.generate(prompts, batch_size=3, request_ids=[9, 4, 6, 0, 8, 2, 5], **SHORT)
    assert [c.request_id for c in run] == [9, 4, 6, 0, 8, 2, 5]
    assert [c.prompt_ids for c in run] == prompts
    alone = [llm.generate([prompt], **SHORT)[0] for prompt in prompts]
    assert tokens(run) == tokens(alone)


def test_what_a_completion_holds(llm):
    completion = llm.generate(TEXTS[:1], "uniform:2", max_new_tokens=9, force_length=True)[0]
    assert completion.stop_reason == "length" and len(completion.token_ids) == 9
    assert completion.layers_run == [2] * 8 and completion.mean_layers == 2.0
    assert completion.layer_counts == [8, 0, 0, 0, 0, 8]
    assert completion.text == llm.decode(completion.token_ids)
    one = llm.generate(TEXTS[:1], max_new_tokens=1)[0]
    assert one.layers_run == [] and one.mean_layers is None


def test_stats(llm):
    prompts = random_prompts(5, seed=2, vocab_size=320)
    result = llm.run(prompts, "early_exit:2", batch_size=2, max_new_tokens=4, force_length=True)
    stats = result.stats
    assert stats.new_tokens == 20 and len(stats.passes) == 9
    assert [p.rows for p in stats.passes] == [2] * 6 + [1] * 3
    assert all(p.layer_rows == (p.rows,) * 3 + (0,) * 3 for p in stats.passes)
    assert stats.seconds >= stats.seconds_prefill + stats.seconds_decode > 0


def ids_up_to_a_new_one(llm, count: int) -> list[int]:
    """Generated ids up to the first new one at `count` or after it: a stand-in for EOS."""
    ids = tokens(llm.generate(TEXTS[:1], max_new_tokens=12, force_length=True))[0]
    at = next(i for i in range(count, 12) if ids[i] not in ids[:i])
    return ids[: at + 1]


def test_eos_stops_a_row_and_force_length_does_not(directory, tmp_path, llm):
    ids = ids_up_to_a_new_one(llm, 3)
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": ids[-1]}))
    stopping = LLM(tmp_path)
    completion = stopping.generate(TEXTS[:1], max_new_tokens=12)[0]
    assert completion.token_ids == ids and completion.stop_reason == "eos"
    assert len(completion.layers_run) == len(ids) - 1
    forced = stopping.generate(TEXTS[:1], max_new_tokens=12, force_length=True)[0]
    assert len(forced.token_ids) == 12 and forced.stop_reason == "length"
    assert forced.token_ids[: len(ids)] == ids
    # the text ends at the first EOS all the same
    assert forced.text == completion.text == llm.decode(ids[:-1])


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_on_token(llm, batch_size):
    seen: list[tuple[int, int]] = []
    options = {"batch_size": batch_size, "request_ids": [5, 3, 8], "max_new_tokens": 6}
    run = llm.generate(TEXTS, on_token=lambda i, t: seen.append((i, t)), **options)
    for completion in run:
        assert [t for i, t in seen if i == completion.request_id] == completion.token_ids
    assert len(seen) == sum(len(c.token_ids) for c in run)
    # within a batch a pass's tokens come together, in the order of the requests
    order = [i for i, _ in seen]
    assert order[: min(batch_size, 3)] == [5, 3, 8][:batch_size]


# -- policies and randomness ---------------------------------------------------------------------


def test_a_policy_for_each_prompt(llm):
    prompts = random_prompts(4, seed=1, vocab_size=320)
    policies = ["full", "uniform:2", dynkern.policy("early_exit:1"), "stochastic:0"]
    mixed = llm.generate(prompts, policies, max_new_tokens=8, batch_size=4)
    alone = [
        llm.generate([prompt], policy, max_new_tokens=8)[0]
        for prompt, policy in zip(prompts, policies, strict=True)
    ]
    assert tokens(mixed) == tokens(alone)
    assert [c.mean_layers for c in mixed] == [6.0, 2.0, 2.0, 1.0]
    assert tokens(llm.generate(prompts, tuple(policies), max_new_tokens=8)) == tokens(mixed)


@pytest.mark.parametrize("policy", ["random:3", "random-step:3", "stochastic:0.5"])
def test_request_ids_decide_the_randomness(llm, policy):
    prompts = [[2, 40, 41]] * 6
    options = {"max_new_tokens": 8, "force_length": True}
    ids = [10, 11, 12, 13, 14, 15]
    run = llm.generate(prompts, policy, request_ids=ids, seed=3, **options)
    assert len({tuple(counts) for counts in executed(run)}) > 1
    backwards = llm.generate(prompts, policy, request_ids=ids[::-1], seed=3, **options)
    assert executed(backwards) == executed(run)[::-1]
    assert tokens(backwards) == tokens(run)[::-1]
    alone = llm.generate(prompts[:1], policy, request_ids=[13], seed=3, **options)
    assert executed(alone) == executed(run)[3:4]
    counted = llm.generate(prompts, policy, seed=3, **options)
    named = llm.generate(prompts, policy, request_ids=range(6), seed=3, **options)
    assert executed(counted) == executed(named) != executed(run)
    other = llm.generate(prompts, policy, request_ids=ids, seed=4, **options)
    assert executed(other) != executed(run)


def test_sampling_is_reproducible(llm):
    prompts = [[2, 40, 41]] * 3
    sampling = SamplingParams(temperature=1.5)
    options = {"sampling": sampling, "max_new_tokens": 8}
    run = llm.generate(prompts, seed=1, **options)
    assert len({tuple(ids) for ids in tokens(run)}) == 3
    assert tokens(llm.generate(prompts, seed=1, batch_size=1, **options)) == tokens(run)
    assert tokens(llm.generate(prompts, seed=2, **options)) != tokens(run)


# -- streaming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["full", "uniform:3", "stochastic:0.7"])
@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_join_to_the_text(llm, text, policy):
    done = []
    pieces = list(
        llm.stream(text, policy, max_new_tokens=40, on_done=lambda *result: done.append(result))
    )
    want = llm.generate([text], policy, max_new_tokens=40)[0]
    assert "".join(pieces) == want.text
    assert len(pieces) > 1 and all(pieces)
    (completion, stats), *more = done
    assert not more and completion == want
    assert stats.new_tokens == len(want.token_ids)
    assert len(stats.passes) == len(want.token_ids) - 1


def test_streaming_leaves_inference_mode_between_pieces(llm):
    for _ in llm.stream(TEXTS[0], max_new_tokens=3):
        assert not torch.is_inference_mode_enabled()
        assert torch.ones(1, requires_grad=True).mul(2).requires_grad


def test_an_abandoned_stream_leaves_the_engine_usable(llm):
    want = tokens(llm.generate(TEXTS, max_new_tokens=8))
    stream = llm.stream(TEXTS[0], max_new_tokens=30)
    next(stream)
    stream.close()
    assert tokens(llm.generate(TEXTS, max_new_tokens=8)) == want


@pytest.mark.parametrize("kv_fill", ["project", "deferred"])
def test_streams_take_turns(llm, kv_fill):
    options = {"policy": "stochastic:0.4", "kv_fill": kv_fill, "max_new_tokens": 16}
    want = [llm.generate([text], **options)[0].text for text in TEXTS[:2]]
    between = tokens(llm.generate(TEXTS, **SHORT))
    streams = [llm.stream(text, **options) for text in TEXTS[:2]]
    got = ["", ""]
    for _ in range(18):
        for i, stream in enumerate(streams):
            got[i] += next(stream, "")
        assert tokens(llm.generate(TEXTS, **SHORT)) == between
    assert got == want


# -- loading -------------------------------------------------------------------------------------


def test_describe(llm):
    description = llm.describe()
    assert description["dynkern"] == dynkern.__version__
    assert description["dtype"] == "float32" and description["backend"] == "auto"
    assert all(isinstance(value, str) and value for value in description.values())


def test_reference_backend_by_name(directory, llm):
    named = LLM(directory, backend="reference")
    assert named.backend == "reference"
    assert tokens(named.generate(TEXTS, **SHORT)) == tokens(llm.generate(TEXTS, **SHORT))


def test_a_tokenizer_of_ones_own(bare, llm):
    given = LLM(bare.path, tokenizer=llm.tokenizer)
    assert given.tokenizer is llm.tokenizer
    assert given.encode("a") == llm.encode("a")


def test_without_tokenizer(bare):
    completion = bare.generate([[2, 40]], **SHORT)[0]
    assert bare.tokenizer is None and completion.text is None
    for use in (
        lambda: bare.generate(["some text"]),
        lambda: bare.encode("some text"),
        lambda: bare.decode([5]),
        lambda: list(bare.stream([2, 40])),
    ):
        with one_line_error(ValueError, "^prompts: .* has no tokenizer, expected token ids"):
            use()


def test_a_tokenizer_that_cannot_be_read(directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"\n')
    with one_line_error(ValueError, "^model: the tokenizer of .* cannot be read"):
        LLM(tmp_path)


# -- wrong arguments -----------------------------------------------------------------------------

LONG = [5] * 159
BAD_RUNS = {
    "a bare string": ({"prompts": "hello"}, "^prompts: got one string, expected a list of"),
    "flat ids": ({"prompts": [2, 5, 6]}, "^prompt: got int, expected text or token ids$"),
    "no prompt": ({"prompts": [None]}, "^prompt: got NoneType, expected text or token ids$"),
    "words": ({"prompts": [["a", "b"]]}, "^prompt: got list, expected text or token ids$"),
    "floats": ({"prompts": [[2.0, 5.5]]}, "^prompt: got list, expected text or token ids$"),
    "empty text": ({"prompts": ["hello", ""]}, "^prompt: empty, expected some text$"),
    "blank text": ({"prompts": [" \n"]}, "^prompt: empty, expected some text$"),
    "no ids": ({"prompts": [[2], []]}, "^prompt of request 1: empty, expected at least one"),
    "large id": ({"prompts": [[2, 320]]}, "^prompt of request 0: token id 320, expected 0 to 319"),
    "negative id": ({"prompts": [[-1]]}, "^prompt of request 0: token id -1, expected 0 to 319$"),
    "too long": ({"prompts": [LONG]}, "^prompt of request 0: too long, 159 tokens and 3 new ones"),
    "too many": ({"max_new_tokens": 160}, "^prompt of request 0: too long, 2 tokens and 160 new"),
    "no new tokens": ({"max_new_tokens": 0}, "^max_new_tokens: got 0, expected 1 or more$"),
    "batch size": ({"batch_size": 0}, "^batch_size: got 0, expected 1 or more$"),
    "prefill": ({"prefill": "none"}, "^prefill: got 'none', expected one of full, routed$"),
    "kv_fill": ({"kv_fill": "zero"}, "^kv_fill: got 'zero', expected one of project, copy"),
    "seed": ({"seed": -1}, "^seed: got -1, expected an integer from 0 to"),
    "large seed": ({"seed": 2**64}, "^seed: got 18446744073709551616, expected an integer"),
    "routed token policy": (
        {"policy": "stochastic:0.5", "prefill": "routed"},
        "^prefill: 'routed' needs a planned policy",
    ),
    "one routed token policy": (
        {"prompts": [[2], [2]], "policy": ["full", "random-step:2"], "prefill": "routed"},
        "^prefill: 'routed' needs a planned policy",
    ),
    "malformed policy": ({"policy": "uniform"}, "^policy 'uniform': malformed, expected uniform:K"),
    "large budget": ({"policy": "uniform:7"}, "^uniform budget: got 7, expected 1 to 6 layers$"),
    "exit layer": ({"policy": "early_exit:6"}, "^early_exit layer: got 6, expected 0 to 5$"),
    "second policy": (
        {"prompts": [[2], [2]], "policy": ["full", "random:9"]},
        "^random budget: got 9, expected 1 to 6 layers$",
    ),
    "policies": ({"policy": ["full"] * 2}, "^policy: got 2 for 1 prompts, expected one for each$"),
    "no policy": ({"policy": None}, "^policy: got NoneType, expected a spec string"),
    "repeated ids": (
        {"prompts": [[2], [2]], "request_ids": [4, 4]},
        "^requests: ids repeat, expected distinct ones$",
    ),
    "too few ids": (
        {"request_ids": []},
        "^request_ids: got 0 for 1 prompts, expected one for each$",
    ),
}


@pytest.mark.parametrize(("given", "expected"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_bad_arguments(llm, given, expected, monkeypatch):
    # before anything runs
    executor = llm.engine.executor
    monkeypatch.setattr(executor, "prefill", lambda *a, **k: pytest.fail("a pass ran"))
    with one_line_error(ValueError, expected):
        llm.run(**{"prompts": [[2, 5]], **SHORT, **given})


def test_the_longest_prompts_fit(llm):
    assert len(llm.generate([LONG], max_new_tokens=2, force_length=True)[0].token_ids) == 2
    assert len(llm.generate([LONG + [6]], max_new_tokens=1)[0].token_ids) == 1


def test_bad_streams(llm):
    for given, expected in [
        ({"policy": "uniform:9"}, "^uniform budget"),
        ({"prompt": ""}, "^prompt: empty"),
        ({"kv_fill": "zero"}, "^kv_fill: "),
    ]:
        with one_line_error(ValueError, expected):
            list(llm.stream(**{"prompt": "hello", **given}))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dtype": "int4"}, "^dtype: got 'int4', expected one of auto, float32, bfloat16, float16"),
        (
            {"dtype": "int8", "backend": "reference"},
            "^dtype: got 'int8', expected one of float32, bfloat16, float16 where the CPU engine "
            "cannot run \\(backend 'reference' is asked for\\)$",
        ),
        ({"backend": "metal"}, "^backend: got 'metal', expected one of auto, reference, cpu"),
        ({"device": "tpu"}, "^device: got 'tpu', expected cpu, cuda or cuda:N$"),
        ({"model": "/no/such/place"}, "^model: /no/such/place does not exist, expected a"),
    ],
)
def test_bad_models(directory, given, expected):
    with one_line_error(FileNotFoundError if "model" in given else ValueError, expected):
        LLM(**{"model": directory, **given})


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_backend_that_cannot_run(directory, backend):
    with pytest.raises(ValueError, match=f"^backend: '{backend}' cannot run .* on cpu: [^\n]*$"):
        LLM(directory, device="cpu", backend=backend)
