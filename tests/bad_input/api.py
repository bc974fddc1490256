"""Rows of the table: dynkern.LLM, policies, routes and sampling parameters, in Python."""

from __future__ import annotations

from typing import Any

import torch

import dynkern
from bad_input.cases import api
from dynkern import routes
from dynkern.llm import LLM
from dynkern.policies import Confidence, EarlyExit, Random, Stochastic, Uniform
from dynkern.routes import TokenProgram

NAN, INF = float("nan"), float("inf")
ALL = torch.ones(6, dtype=torch.bool)


class Planned:
    """A policy that hands out what it was given."""

    spec = "mine"

    def __init__(self, *plans: Any) -> None:
        self.plans = list(plans)

    def plan(self, requests):
        return self.plans


class Tokens:
    """A token policy that hands out what it was given."""

    spec = "mine"

    def __init__(self, program: Any) -> None:
        self.program = program

    def lower(self, num_layers):
        return self.program


def plans(*given: Any):
    return lambda p: p.run(policy=Planned(*given))


def program(*given: Any, **named: Any):
    return lambda p: p.run(policy=Tokens(TokenProgram(*given, **named)))


PROMPTS = [
    api("prompts", "one string", lambda p: p.run(prompts="hello")),
    api("prompts", "None", lambda p: p.run(prompts=None)),
    api("prompts", "5", lambda p: p.run(prompts=5)),
    api("prompts", "{'a': 1}", lambda p: p.run(prompts={"a": 1})),
    api("prompt", "NoneType", lambda p: p.run(prompts=[None])),
    api("prompt", "bytes", lambda p: p.run(prompts=[b"hello"])),
    api("prompt", "list", lambda p: p.run(prompts=[["a"]])),
    api("prompt", "list", lambda p: p.run(prompts=[[2.0]])),
    api("prompt", "list", lambda p: p.run(prompts=[[True, False]])),
    api("prompt", "empty", lambda p: p.run(prompts=[" \n"])),
    api("prompt", "half a surrogate pair", lambda p: p.run(prompts=["a\ud800"])),
    api("prompt of request 0", "empty", lambda p: p.run(prompts=[[]])),
    api("prompt of request 1", "token id 320", lambda p: p.run(prompts=[[2], [320]]), "0 to 319"),
    api("prompt of request 0", "token id -1", lambda p: p.run(prompts=[[-1]]), "0 to 319"),
    api("prompt of request 0", "token id 12089258", lambda p: p.run(prompts=[[2**80]])),
    api("prompt of request 0", "161 tokens and 3 new", lambda p: p.run(prompts=[[5] * 161]), "160"),
    api("text", "None", lambda p: p.llm.encode(None)),
    api("token_ids", "-1", lambda p: p.llm.decode([-1])),
    api("token_ids", "320", lambda p: p.llm.decode([2, 320])),
    api("token_ids", "None", lambda p: p.llm.decode(None)),
    api("token_ids", "'a'", lambda p: p.llm.decode(["a"])),
]

OPTIONS = [
    api("max_new_tokens", "0", lambda p: p.run(max_new_tokens=0), "1 or more"),
    api("max_new_tokens", "-3", lambda p: p.run(max_new_tokens=-3), "1 or more"),
    api("max_new_tokens", "2.5", lambda p: p.run(max_new_tokens=2.5), "an integer"),
    api("max_new_tokens", "'5'", lambda p: p.run(max_new_tokens="5"), "an integer"),
    api("max_new_tokens", "None", lambda p: p.run(max_new_tokens=None), "an integer"),
    api("max_new_tokens", "True", lambda p: p.run(max_new_tokens=True), "an integer"),
    # more than the cache has positions for
    api(
        "prompt of request 0",
        "159 new ones",
        lambda p: p.run(prompts=[[2] * 3, [2]], max_new_tokens=159),
        "160",
    ),
    api("prompt of request 0", "000 new ones", lambda p: p.run(max_new_tokens=10**30), "160"),
    api("batch_size", "0", lambda p: p.run(batch_size=0), "1 or more"),
    api("batch_size", "-1", lambda p: p.run(batch_size=-1), "1 or more"),
    api("batch_size", "2.5", lambda p: p.run(batch_size=2.5), "an integer"),
    api("batch_size", "None", lambda p: p.run(batch_size=None), "an integer"),
    api("seed", "-1", lambda p: p.run(seed=-1), "0 to 2**64 - 1"),
    api("seed", "18446744073709551616", lambda p: p.run(seed=2**64), "0 to 2**64 - 1"),
    api("seed", "1.5", lambda p: p.run(seed=1.5), "an integer"),
    api("seed", "None", lambda p: p.run(seed=None), "an integer"),
    api("prefill", "'half'", lambda p: p.run(prefill="half"), "full, routed"),
    api("prefill", "None", lambda p: p.run(prefill=None), "full, routed"),
    api(
        "prefill",
        "token policy",
        lambda p: p.run(policy="stochastic:0.5", prefill="routed"),
        "use 'full'",
    ),
    api("kv_fill", "'zero'", lambda p: p.run(kv_fill="zero"), "project, copy"),
    api("kv_fill", "[]", lambda p: p.run(kv_fill=[]), "project, copy"),
    api("force_length", "'no'", lambda p: p.run(force_length="no"), "True or False"),
    api("request_ids", "0 for 1", lambda p: p.run(request_ids=[])),
    api("request_ids", "3", lambda p: p.run(request_ids=3)),
    api("request_ids", "-1", lambda p: p.run(request_ids=[-1])),
    api("request_ids", "9223372036854775808", lambda p: p.run(request_ids=[2**63])),
    api("request_ids", "1.5", lambda p: p.run(request_ids=[1.5])),
    api("requests", "repeat", lambda p: p.run(prompts=[[2], [2]], request_ids=[4, 4])),
    api("on_token", "5", lambda p: p.run(on_token=5), "a function"),
    api("on_done", "5", lambda p: list(p.llm.stream("hello", on_done=5)), "a function"),
    api("max_new_tokens", "0", lambda p: list(p.llm.stream("hello", max_new_tokens=0))),
]

SAMPLING = [
    api("temperature", "nan", lambda p: p.sample(temperature=NAN), "a finite number"),
    api("temperature", "inf", lambda p: p.sample(temperature=INF), "a finite number"),
    api("temperature", "-1", lambda p: p.sample(temperature=-1), "a finite number"),
    api("temperature", "1e-40", lambda p: p.sample(temperature=1e-40), "0 (greedy) or 1e-9"),
    api("temperature", "'1'", lambda p: p.sample(temperature="1"), "a finite number"),
    api("temperature", "None", lambda p: p.sample(temperature=None), "a finite number"),
    api("top_k", "-1", lambda p: p.sample(temperature=1, top_k=-1), "0 (off) or more"),
    api("top_k", "1.5", lambda p: p.sample(temperature=1, top_k=1.5), "an integer"),
    api("top_p", "0", lambda p: p.sample(temperature=1, top_p=0), "above 0 and up to 1"),
    api("top_p", "1.5", lambda p: p.sample(temperature=1, top_p=1.5), "above 0 and up to 1"),
    api("top_p", "nan", lambda p: p.sample(temperature=1, top_p=NAN), "above 0 and up to 1"),
    # greedy decoding would not look at it, and a slip is a slip
    api("top_p", "-0.5", lambda p: p.sample(top_p=-0.5), "above 0 and up to 1"),
    api("repetition_penalty", "0", lambda p: p.sample(repetition_penalty=0), "above 0"),
    api("repetition_penalty", "-1", lambda p: p.sample(repetition_penalty=-1), "above 0"),
    api("repetition_penalty", "nan", lambda p: p.sample(repetition_penalty=NAN), "above 0"),
    api("repetition_penalty", "inf", lambda p: p.sample(repetition_penalty=INF), "above 0"),
    api("sampling", "{'top_k': 1}", lambda p: p.run(sampling={"top_k": 1}), "SamplingParams"),
]

POLICIES = [
    api("policy", "NoneType", lambda p: p.run(policy=None)),
    api("policy", "bytes", lambda p: p.run(policy=b"full")),
    api("policy", "type", lambda p: p.run(policy=Planned)),
    api("policy", "2 for 1", lambda p: p.run(policy=["full"] * 2)),
    api("policy 'nope:3'", "unknown", lambda p: p.run(policy="nope:3"), "uniform:K"),
    api("policy 'uniform:x'", "malformed", lambda p: p.run(policy="uniform:x"), "uniform:K"),
    api("uniform budget", "7", lambda p: p.run(policy="uniform:7"), "1 to 6"),
    api("uniform budget", "2.5", lambda p: p.run(policy=Uniform(2.5)), "1 to 6"),
    api("uniform-even budget", "4", lambda p: p.run(policy="uniform-even:4"), "a divisor"),
    api("random budget", "'a'", lambda p: p.run(policy=Random("a")), "1 to 6"),
    api("random-step budget", "0", lambda p: p.run(policy="random-step:0"), "1 to 6"),
    api("early_exit layer", "6", lambda p: p.run(policy="early_exit:6"), "0 to 5"),
    api("early_exit layer", "True", lambda p: p.run(policy=EarlyExit(True)), "0 to 5"),
    api("stochastic probability", "1.5", lambda p: p.run(policy="stochastic:1.5"), "0 to 1"),
    api("stochastic probability", "nan", lambda p: Stochastic(NAN), "0 to 1"),
    api("stochastic probability", "'a'", lambda p: Stochastic("a"), "0 to 1"),
    api("confidence measure", "'luck'", lambda p: Confidence("luck", 0.5), "top_prob, margin"),
    api("confidence margin", "nan", lambda p: Confidence("margin", NAN), "0 to 1"),
    api("confidence exits", "5", lambda p: Confidence("margin", 0.5, 5), "a tuple"),
    api("confidence exits", "layer 5", lambda p: p.run(policy=Confidence("margin", 0.5, (5,)))),
    api("policy mine", "5", lambda p: p.run(policy=Tokens(5)), "a TokenProgram"),
    api("policy mine kind", "'luck'", program("luck"), "bernoulli, subset"),
    api("policy mine budget", "0", program("subset"), "1 to 6"),
    api("policy mine probability", "5 numbers", program("bernoulli", (1.0,) * 5), "6, one a layer"),
    api("policy mine probability", "nan", program("bernoulli", (NAN,) * 6), "0 to 1"),
    api("policy mine probability", "0 for every", program("bernoulli", (0.0,) * 6), "one above"),
    api("policy mine exit_layers", "-1", program("confidence", exit_layers=(-1,)), "0 to 4"),
    api("policy mine measure", "'luck'", program("confidence", measure="luck"), "top_prob"),
    api("policy mine threshold", "nan", program("confidence", threshold=NAN), "a finite number"),
]

ROUTES = [
    api("policy mine", "shape (1, 5)", plans(ALL[:5]), "(1, 6)"),
    api("policy mine", "shape (2, 6)", plans(ALL, ALL), "(1, 6)"),
    api("policy mine", "dtype torch.float32", plans(torch.ones(6)), "torch.bool"),
    api("policy mine", "dtype torch.int64", plans([1] * 6), "torch.bool"),
    api("policy mine", "runs no layer", plans(~ALL), "at least one"),
    api("policy mine", "not 1 rows of 6 booleans", plans(None), "booleans"),
    api("policy mine", "not 1 rows of 6 booleans", plans(), "booleans"),
    api("policy mine", "device meta", plans(ALL.to("meta")), "cpu or cuda"),
    api("policy mine", "tensor(indices", plans(ALL.to_sparse()), "6 booleans"),
    api("layers", "6", lambda p: routes.from_layers([6], 6), "0 to 5"),
    api("layers", "-1", lambda p: routes.from_layers([-1], 6), "0 to 5"),
    api("layers", "none", lambda p: routes.from_layers([], 6), "at least one"),
    api("num_layers", "0", lambda p: routes.full(0), "1 or more"),
]

LOADING = [
    api("model", "None", lambda p: LLM(None), "a checkpoint directory"),
    api("model", "''", lambda p: LLM(""), "a checkpoint directory"),
    api("dtype", "'int4'", lambda p: LLM(p.model, dtype="int4"), "float32, bfloat16"),
    api("dtype", "torch.float32", lambda p: LLM(p.model, dtype=torch.float32), "auto, float32"),
    api("dtype", "'int8'", lambda p: LLM(p.model, dtype="int8", backend="reference")),
    api("backend", "'metal'", lambda p: LLM(p.model, backend="metal"), "reference, cpu"),
    api("backend", "None", lambda p: LLM(p.model, backend=None), "reference, cpu"),
    api("use_backend", "'metal'", lambda p: dynkern.use_backend("metal").__enter__()),
    api("device", "'tpu'", lambda p: LLM(p.model, device="tpu"), "cpu, cuda"),
    api("device", "'meta'", lambda p: LLM(p.model, device="meta"), "cpu, cuda"),
    api("device", "[]", lambda p: LLM(p.model, device=[]), "cpu, cuda"),
    api("tokenizer", "5", lambda p: LLM(p.model, tokenizer=5), "one of transformers"),
]

CASES = [*PROMPTS, *OPTIONS, *SAMPLING, *POLICIES, *ROUTES, *LOADING]
