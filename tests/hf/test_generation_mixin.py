"""What transformers tests of every class that generates, for the drop-in: after the documented
behaviour of its GenerationMixin, with engine and policy where those serve.

Exceptions are in README's limitations: `return_dict_in_generate` hands out no cache, and rows that
have ended have no logits.
"""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    StaticCache,
    StoppingCriteriaList,
)
from transformers.generation import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
)

from support.opt import VARIANTS, random_prompts
from support.twins import check_equal, padded, twins

NEW_TOKENS = 6
POLICIES = ["full", "uniform:3", "stochastic:0.6", "confidence:top_prob=0.5"]
OUTPUTS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using the model-agnostic default"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated"),
]


@pytest.fixture(scope="module", params=["pre_norm", "post_norm_projected"])
def pair(request: pytest.FixtureRequest):
    return twins(seed=1, **VARIANTS[request.param])


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return request.param


INPUTS = padded(random_prompts(3, seed=11))
WIDTH = INPUTS["input_ids"].shape[1]


def check_output(out, rows: int, vocab: int) -> None:
    """Types and shapes of a dict with scores and logits."""
    assert isinstance(out, GenerateDecoderOnlyOutput)
    steps = out.sequences.shape[1] - WIDTH
    assert out.sequences.shape[0] == rows and 1 <= steps <= NEW_TOKENS
    for recorded in (out.scores, out.logits):
        assert isinstance(recorded, tuple) and len(recorded) == steps
        assert all(step.shape == (rows, vocab) for step in recorded)
        assert all(step.dtype == torch.float32 for step in recorded)


# -- greedy and sampling ---------------------------------------------------------------------------


def test_greedy_generate(pair, policy):
    ids = pair[1].generate(**INPUTS, policy=policy, do_sample=False, max_new_tokens=NEW_TOKENS)
    assert ids.dtype == torch.int64 and WIDTH < ids.shape[1] <= WIDTH + NEW_TOKENS
    assert torch.equal(ids[:, :WIDTH], INPUTS["input_ids"])
    if policy == "full":
        check_equal(*pair, INPUTS, max_new_tokens=NEW_TOKENS)


def test_greedy_generate_dict_outputs(pair, policy):
    settings = {"policy": policy, "max_new_tokens": NEW_TOKENS}
    out = pair[1].generate(**INPUTS, **settings, **OUTPUTS)
    check_output(out, 3, 131)
    # recording changes nothing
    assert torch.equal(out.sequences, pair[1].generate(**INPUTS, **settings))
    # without processors scores are the logits, and greedy takes the largest
    for step, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
        assert torch.equal(scores, logits)
        live = (out.sequences[:, WIDTH : WIDTH + step] != 2).all(dim=1)
        assert torch.equal(scores.argmax(dim=1)[live], out.sequences[live, WIDTH + step])


@pytest.mark.parametrize("copies", [1, 2])
def test_sample_generate(pair, policy, copies):
    settings = {"do_sample": True, "max_new_tokens": NEW_TOKENS, "policy": policy}
    settings["num_return_sequences"] = copies
    torch.manual_seed(0)
    ids = pair[1].generate(**INPUTS, **settings)
    assert ids.shape[0] == 3 * copies
    assert torch.equal(ids[:, :WIDTH], INPUTS["input_ids"].repeat_interleave(copies, dim=0))
    torch.manual_seed(0)
    assert torch.equal(pair[1].generate(**INPUTS, **settings), ids)


def test_sample_generate_dict_output(pair, policy):
    torch.manual_seed(0)
    out = pair[1].generate(
        **INPUTS,
        policy=policy,
        do_sample=True,
        num_return_sequences=2,
        top_k=7,
        max_new_tokens=NEW_TOKENS,
        **OUTPUTS,
    )
    check_output(out, 6, 131)
    for step, scores in enumerate(out.scores):
        live = (out.sequences[:, WIDTH : WIDTH + step] != 2).all(dim=1)
        # top-k has left k of them, one of which was drawn
        assert (scores[live].isfinite().sum(dim=1) == 7).all()
        drawn = out.sequences[live, WIDTH + step]
        assert scores[live, :].gather(1, drawn[:, None]).isfinite().all()


def test_sample_generate_draws_as_transformers_where_python_takes_part(pair):
    settings = {"do_sample": True, "max_new_tokens": NEW_TOKENS, **OUTPUTS}
    results = []
    for module in pair:
        torch.manual_seed(7)
        results.append(module.generate(**INPUTS, **settings).sequences)
    assert torch.equal(*results)


# -- padding ---------------------------------------------------------------------------------------


# the draws of a random policy go by the row's place in the batch
@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "stochastic:0.6"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_compatibility(pair, policy, side):
    """Logits and ids of a padded row are those of the row alone."""
    prompts = random_prompts(3, seed=11)
    settings = {"policy": policy, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, **OUTPUTS}
    batch = padded(prompts, side=side)
    together = pair[1].generate(**batch, **settings)
    for row, prompt in enumerate(prompts):
        alone = pair[1].generate(torch.tensor([prompt]), **settings)
        assert (
            together.sequences[row, WIDTH:].tolist() == alone.sequences[0, len(prompt) :].tolist()
        )
        for a, b in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(a[row], b[0], rtol=1e-4, atol=1e-4)


def test_more_padding_changes_nothing(pair, policy):
    settings = {"policy": policy, "max_new_tokens": NEW_TOKENS}
    ids = pair[1].generate(**INPUTS, **settings)[:, WIDTH:]
    more = {
        k: torch.nn.functional.pad(v, (5, 0), value=int(k == "input_ids"))
        for k, v in INPUTS.items()
    }
    assert torch.equal(pair[1].generate(**more, **settings)[:, WIDTH + 5 :], ids)


# -- caches ----------------------------------------------------------------------------------------


def test_generate_without_cache(pair, policy):
    """use_cache=False is a wish about memory: the engine keeps its own, ids are the same."""
    settings = {"policy": policy, "max_new_tokens": NEW_TOKENS}
    with_cache = pair[1].generate(**INPUTS, use_cache=True, **settings)
    assert torch.equal(pair[1].generate(**INPUTS, use_cache=False, **settings), with_cache)
    if policy == "full":
        want = pair[0].generate(**INPUTS, use_cache=False, max_new_tokens=NEW_TOKENS)
        assert torch.equal(with_cache, want)


def test_generate_continue_from_past_key_values(pair):
    """In two goes, with the cache of the first where there is one, as in one."""
    one_row = {name: tensor[:1] for name, tensor in INPUTS.items()}
    whole = pair[1].generate(**one_row, max_new_tokens=4, eos_token_id=None)
    for module in pair:
        out = module.generate(
            **one_row, max_new_tokens=2, eos_token_id=None, return_dict_in_generate=True
        )
        mask = torch.nn.functional.pad(one_row["attention_mask"], (0, 2), value=1)
        again = module.generate(
            out.sequences,
            attention_mask=mask,
            max_new_tokens=2,
            eos_token_id=None,
            past_key_values=out.past_key_values,
        )
        assert torch.equal(again, whole)
        assert (out.past_key_values is None) == (module is pair[1])


def test_a_cache_of_the_callers_is_filled_by_transformers(pair):
    cache = DynamicCache(config=pair[1].config)
    out = pair[1].generate(
        **INPUTS, past_key_values=cache, return_dict_in_generate=True, max_new_tokens=NEW_TOKENS
    )
    assert out.past_key_values is cache and len(cache.layers) == 6
    assert cache.get_seq_length() == out.sequences.shape[1] - 1
    with pytest.raises(
        NotImplementedError, match="^generate: (past_key_values|cache) is not served"
    ):
        pair[1].generate(**INPUTS, past_key_values=cache, policy="uniform:3")


def test_generate_with_static_cache(pair):
    settings = {"cache_implementation": "static", "disable_compile": True, "max_new_tokens": 4}
    out = pair[1].generate(**INPUTS, **settings, return_dict_in_generate=True)
    assert isinstance(out.past_key_values, StaticCache)
    want = pair[0].generate(**INPUTS, **settings)
    assert torch.equal(out.sequences, want)


# -- beams and assistants: transformers' own loop --------------------------------------------------


def test_beam_search_generate(pair):
    settings = {"num_beams": 2, "max_new_tokens": NEW_TOKENS, "num_return_sequences": 2}
    ids = pair[1].generate(**INPUTS, **settings)
    assert ids.shape[0] == 6 and torch.equal(ids, pair[0].generate(**INPUTS, **settings))
    out = pair[1].generate(**INPUTS, **settings, return_dict_in_generate=True, output_scores=True)
    assert isinstance(out, GenerateBeamDecoderOnlyOutput) and torch.equal(out.sequences, ids)
    with pytest.raises(NotImplementedError, match="^generate: num_beams=2"):
        pair[1].generate(**INPUTS, **settings, policy="uniform:3")


def test_beam_sample_generate(pair):
    results = []
    for module in pair:
        torch.manual_seed(0)
        results.append(
            module.generate(**INPUTS, num_beams=2, do_sample=True, max_new_tokens=NEW_TOKENS)
        )
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", ["greedy", "sample"])
def test_assisted_decoding_matches_the_plain_search(pair, kind):
    one_row = {"input_ids": torch.tensor([[2, 40, 41, 40, 41, 40]])}
    assistant = copy.deepcopy(pair[1])
    results = []
    for module in pair:
        torch.manual_seed(0)
        results.append(
            module.generate(
                **one_row,
                assistant_model=assistant,
                do_sample=kind == "sample",
                max_new_tokens=NEW_TOKENS,
            )
        )
    assert torch.equal(*results)
    if kind == "greedy":
        assert torch.equal(results[1], pair[1].generate(**one_row, max_new_tokens=NEW_TOKENS))


def test_prompt_lookup_decoding_matches_greedy_search(pair):
    one_row = {"input_ids": torch.tensor([[2, 40, 41, 40, 41, 40]])}
    plain = pair[1].generate(**one_row, max_new_tokens=NEW_TOKENS)
    looked_up = pair[1].generate(**one_row, prompt_lookup_num_tokens=2, max_new_tokens=NEW_TOKENS)
    assert torch.equal(looked_up, plain)
    with pytest.raises(NotImplementedError, match="^generate: prompt_lookup_num_tokens=2"):
        pair[1].generate(**one_row, prompt_lookup_num_tokens=2, policy="uniform:3")


# -- inputs ----------------------------------------------------------------------------------------


def test_generate_from_inputs_embeds(pair):
    """Ids that come of embeddings alone, and of both; in transformers' loop."""
    ids = torch.tensor([[2, 40, 41, 42]])
    embeds = pair[1].get_input_embeddings()(ids)
    plain = pair[1].generate(ids, max_new_tokens=NEW_TOKENS)
    assert torch.equal(
        pair[1].generate(inputs_embeds=embeds, max_new_tokens=NEW_TOKENS), plain[:, 4:]
    )
    both = pair[1].generate(ids, inputs_embeds=embeds, max_new_tokens=NEW_TOKENS)
    assert torch.equal(both, plain)
    with pytest.raises(NotImplementedError, match="^generate: inputs_embeds is not served"):
        pair[1].generate(inputs_embeds=embeds, policy="uniform:3")


def test_inputs_are_left_as_they_are(pair, policy):
    inputs = {name: tensor.clone() for name, tensor in INPUTS.items()}
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, bad_words_ids=[[5]])
    before = config.to_dict()
    own = pair[1].generation_config.to_dict()
    pair[1].generate(**inputs, generation_config=config, policy=policy)
    assert all(torch.equal(inputs[name], INPUTS[name]) for name in INPUTS)
    assert config.to_dict() == before and pair[1].generation_config.to_dict() == own


# -- lengths ---------------------------------------------------------------------------------------


def test_max_length_and_max_new_tokens(pair, policy):
    settings = {"policy": policy, "eos_token_id": None}
    a = pair[1].generate(**INPUTS, max_new_tokens=4, **settings)
    b = pair[1].generate(**INPUTS, max_length=WIDTH + 4, **settings)
    assert torch.equal(a, b) and a.shape[1] == WIDTH + 4
    # the caller's own criterion is one more
    c = pair[1].generate(
        **INPUTS,
        max_new_tokens=4,
        **settings,
        stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(WIDTH + 2)]),
    )
    assert torch.equal(c, a[:, : WIDTH + 2])


@pytest.mark.parametrize("at", [-1, 0, 1])
def test_a_max_length_criterion_within_the_prompt_gives_one_token(pair, at):
    criteria = StoppingCriteriaList([MaxLengthCriteria(WIDTH + at)])
    for module in pair:
        ids = module.generate(**INPUTS, stopping_criteria=criteria, max_new_tokens=4)
        assert ids.shape[1] == WIDTH + 1


def test_min_length(pair, policy):
    every = list(range(131))
    settings = {"policy": policy, "eos_token_id": every[4:], "max_new_tokens": NEW_TOKENS}
    assert pair[1].generate(**INPUTS, **settings).shape[1] == WIDTH + 1
    ids = pair[1].generate(**INPUTS, min_new_tokens=4, **settings)
    assert ids.shape[1] >= WIDTH + 5 and (ids[:, WIDTH : WIDTH + 4] < 4).all()
    assert torch.equal(pair[1].generate(**INPUTS, min_length=WIDTH + 4, **settings), ids)


# -- processors of a caller ------------------------------------------------------------------------


def test_custom_logits_processor(pair, policy):
    """One that `generate` would make itself takes the place of that."""

    class Bans(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, 4:] = -float("inf")
            return scores

    ids = pair[1].generate(
        **INPUTS, policy=policy, logits_processor=[Bans()], max_new_tokens=4, min_length=WIDTH + 4
    )
    assert (ids[:, WIDTH:] < 4).all()


def test_transformers_warns_of_and_prefers_the_callers_processor(pair):
    processor = transformers.RepetitionPenaltyLogitsProcessor(5.0)
    settings = {"logits_processor": [processor], "repetition_penalty": 1.1}
    a, b = (m.generate(**INPUTS, **settings, max_new_tokens=NEW_TOKENS) for m in pair)
    assert torch.equal(a, b)
    c = pair[1].generate(**INPUTS, repetition_penalty=1.1, max_new_tokens=NEW_TOKENS)
    assert not torch.equal(b, c)


# -- the interface ---------------------------------------------------------------------------------


def test_generate_takes_what_transformers_takes():
    theirs = inspect.signature(transformers.OPTForCausalLM.generate).parameters
    ours = inspect.signature(twins()[1].generate).parameters
    assert list(ours)[:4] == list(theirs)[1:5]
    assert ours["kwargs"].kind is inspect.Parameter.VAR_KEYWORD


def test_by_position(pair):
    config = GenerationConfig(max_new_tokens=3)
    bans = [lambda ids, scores: scores.index_fill(1, torch.arange(4, 90), -9e9)]
    ids = torch.tensor([[2, 40]])
    results = [m.generate(ids, config, bans, StoppingCriteriaList()) for m in pair]
    assert torch.equal(*results) and (results[0][:, 2:] >= 90).all()


def test_reorder_and_transition_scores(pair):
    out = pair[1].generate(**INPUTS, **OUTPUTS, policy="uniform:3", max_new_tokens=NEW_TOKENS)
    scores = pair[1].compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    assert scores.shape == (3, out.sequences.shape[1] - WIDTH) and (scores <= 0).all()


def test_unknown_arguments_are_refused(pair):
    with pytest.raises(ValueError, match="max_new_token"):
        pair[1].generate(**INPUTS, max_new_token=3)
