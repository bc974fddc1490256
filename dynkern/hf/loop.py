"""The loops that stand in for transformers' own: plain ones many passes at a time, others in step.

transformers prepares a call (lengths, processors, criteria, copies of rows); what comes out of it
decides the loop, so that every option means what it means there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dynkern.hf.rows import RowBatch
from dynkern.runtime.engine import Engine, RunOptions
from dynkern.runtime.request import Policy, Request, SamplingParams, TokenEvent
from dynkern.runtime.sampling import Head, TokenPicker

# the processors that `sample` has itself, in its order, which is transformers'
_SAMPLED = (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Call:
    """One `generate` on the engine. seed: the caller's, or None; options: batch_size and seed are
    set here.
    """

    engine: Engine
    policy: Policy
    rows: RowBatch
    options: RunOptions
    seed: int | None


def decode(
    call: Call,
    input_ids: Tensor,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    config: GenerationConfig,
    streamer: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """What transformers' `_sample` returns for the same arguments.

    input_ids: int64 [B, T], padded on the left, rows repeated for num_return_sequences.
    """
    recorded = config.return_dict_in_generate and (config.output_scores or config.output_logits)
    params = _plain_sampling(processors, criteria, config, call.rows)
    scores = logits = None
    if params is None or recorded or (streamer is not None and len(input_ids) > 1):
        steps = _Steps(input_ids, processors, criteria, config, streamer, _generator(call, config))
        new = _in_step(call, steps)
        scores = None if steps.scores is None else tuple(steps.scores)
        logits = None if steps.logits is None else tuple(steps.logits)
    else:
        new = _plain(call, input_ids, params, criteria, config, streamer)
    if streamer is not None:
        streamer.end()
    sequences = call.rows.echo(new)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(sequences=sequences, scores=scores, logits=logits)


def _requests(
    call: Call,
    input_ids: Tensor,
    criteria: StoppingCriteriaList,
    eos: frozenset[int],
    sampling: SamplingParams,
) -> list[Request]:
    copies = len(input_ids) // len(call.rows.prompts)
    longest = min(c.max_length for c in criteria if isinstance(c, MaxLengthCriteria))
    # a criterion is asked after a token, so there is one
    new_tokens = max(1, longest - input_ids.shape[1])
    return [
        Request(i, call.rows.prompts[i // copies], call.policy, new_tokens, eos, sampling=sampling)
        for i in range(len(input_ids))
    ]


# -- plain: the engine samples and stops by itself -------------------------------------------------


def _plain_sampling(
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    config: GenerationConfig,
    rows: RowBatch,
) -> SamplingParams | None:
    """What the engine's own sampling is to do, or None where it cannot do the same."""
    if any(type(c) not in (MaxLengthCriteria, EosTokenCriteria) for c in criteria):
        return None
    values: dict[str, Any] = {"temperature": 1.0 if config.do_sample else 0.0}
    # greedy decoding has no use for the last three, but a caller may have given them
    left = list(_SAMPLED if config.do_sample else _SAMPLED[:1])
    for processor in processors:
        while left and type(processor) is not left[0]:
            left.pop(0)
        if not left:
            return None
        kind = left.pop(0)
        if kind is RepetitionPenaltyLogitsProcessor:
            if not _penalises_what_is_read(processor, rows):
                return None
            values["repetition_penalty"] = processor.penalty
        elif kind is TemperatureLogitsWarper:
            values["temperature"] = float(processor.temperature)
        else:
            name = "top_k" if kind is TopKLogitsWarper else "top_p"
            if processor.filter_value != -float("inf"):
                return None
            if name == "top_p" and processor.min_tokens_to_keep != 1:
                return None
            values[name] = getattr(processor, name)
    return SamplingParams(**values)


def _penalises_what_is_read(processor: RepetitionPenaltyLogitsProcessor, rows: RowBatch) -> bool:
    """Whether a repetition penalty counts just the tokens of a row, as the engine's does."""
    ignored = getattr(processor, "prompt_ignore_length", None)
    if ignored is None:
        return not any(rows.padding)
    return isinstance(ignored, Tensor) and ignored.tolist() == rows.padding


def _plain(
    call: Call,
    input_ids: Tensor,
    params: SamplingParams,
    criteria: StoppingCriteriaList,
    config: GenerationConfig,
    streamer: Any,
) -> Tensor:
    """Generated ids [B, N], padded on the right."""
    on_token = None
    if streamer is not None:

        def on_token(_: int, token: int) -> None:
            streamer.put(torch.tensor([token]))

    eos = [c.eos_token_id.tolist() for c in criteria if isinstance(c, EosTokenCriteria)]
    eos_ids = frozenset(i for ids in eos for i in (ids if isinstance(ids, list) else [ids]))
    requests = _requests(call, input_ids, criteria, eos_ids, params)
    seed = call.seed
    if seed is None and config.do_sample:
        # the engine's randomness is counter-based: torch's generator gives its key
        seed = int(torch.randint(1 << 62, ()))
    options = replace(call.options, batch_size=len(requests), seed=seed or 0)
    result = call.engine.run(requests, options, on_token)
    rows = [completion.token_ids for completion in result.completions]
    longest, pad = max(map(len, rows)), _pad_id(config)
    padded = [ids + [pad] * (longest - len(ids)) for ids in rows]
    return torch.tensor(padded, dtype=torch.int64, device=input_ids.device)


# -- in step: processors and criteria in Python, one token of every row at a time ------------------


class _Steps:
    """All rows of a batch as transformers' loop holds them, finished ones padded.

    input_ids: int64 [B, T + steps]; scores, logits: float32 [B, V] of each step, where recorded.
    A finished row runs no more: its logits are zero from there on.
    """

    def __init__(
        self,
        input_ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamer: Any,
        generator: torch.Generator | None,
    ) -> None:
        self.input_ids, self.processors, self.criteria = input_ids, processors, criteria
        self.streamer, self.generator, self.do_sample = streamer, generator, config.do_sample
        self.width, self.pad = input_ids.shape[1], _pad_id(config)
        self.pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        self.unfinished = torch.ones_like(input_ids[:, 0])
        kept = bool(config.return_dict_in_generate)
        self.scores: list[Tensor] | None = [] if kept and config.output_scores else None
        self.logits: list[Tensor] | None = [] if kept and config.output_logits else None

    def next_tokens(self, live: Tensor, logits: Tensor) -> Tensor:
        """int64 [B] from float [C, V], the logits of rows live: int64 [C]."""
        rows, device = len(self.input_ids), self.input_ids.device
        expected = int(self.unfinished.sum()) if self.pads else rows
        if len(live) != expected:
            raise RuntimeError(f"a pass over {len(live)} rows, expected all {expected} in step")
        # a caller's code meets ordinary tensors
        with torch.inference_mode(False), torch.no_grad():
            whole = torch.zeros(rows, logits.shape[1], device=device)
            whole[live.to(device, copy=True)] = logits.to(device, torch.float32, copy=True)
            scores = self.processors(self.input_ids, whole)
            if self.logits is not None:
                self.logits.append(whole)
            if self.scores is not None:
                self.scores.append(scores)
            if self.do_sample:
                probability = scores.softmax(dim=-1)
                token = torch.multinomial(probability, 1, generator=self.generator)[:, 0]
            else:
                token = scores.argmax(dim=-1)
            if self.pads:
                token = torch.where(self.unfinished.bool(), token, self.pad)
            self.input_ids = torch.cat([self.input_ids, token[:, None]], dim=1)
        return token

    def ended(self, _: Sequence[TokenEvent]) -> list[int]:
        """Rows that end with the token just booked; called once for every step."""
        scores = None if self.scores is None else tuple(self.scores)
        stop = self.criteria(self.input_ids, scores).to(self.unfinished.device)
        self.unfinished = self.unfinished & ~stop
        if self.streamer is not None:
            self.streamer.put(self.input_ids[:, -1].cpu())
        if not self.pads and self.unfinished.any():
            # without an EOS token transformers lets finished rows run on, unpadded
            return []
        return (self.unfinished == 0).nonzero()[:, 0].tolist()


class _StepPicker(TokenPicker):
    """Hands the logits of each pass to `steps`."""

    def __init__(self, head: Head, params: SamplingParams, seed: int, steps: _Steps) -> None:
        super().__init__(head, params, seed)
        self.steps = steps

    def pick(
        self, hidden: Tensor, n: Tensor | None, rows: Tensor, request: Tensor, step: Tensor
    ) -> Tensor:
        """int64 [C]; see TokenPicker."""
        count = hidden.shape[0] if n is None else int(n)
        logits = self.head.logits(hidden, n)[:count]
        token = self.steps.next_tokens(request[:count], logits).to(request.device)
        return token.index_select(0, request)


def _in_step(call: Call, steps: _Steps) -> Tensor:
    """Generated ids [B, N]."""
    requests = _requests(call, steps.input_ids, steps.criteria, frozenset(), SamplingParams())
    options = replace(
        call.options,
        batch_size=len(requests),
        seed=call.seed or 0,
        schedule="fifo",
        picker=lambda head, params, seed: _StepPicker(head, params, seed, steps),
    )
    call.engine.run(requests, options, on_pass=steps.ended)
    return steps.input_ids[:, steps.width :]


def _generator(call: Call, config: GenerationConfig) -> torch.Generator | None:
    """None is torch's own, which transformers draws from."""
    if call.seed is None or not config.do_sample:
        return None
    return torch.Generator(call.rows.input_ids.device).manual_seed(call.seed & ((1 << 63) - 1))


def _pad_id(config: GenerationConfig) -> int:
    """As in transformers; 0 where nothing is ever padded."""
    for value in (config.pad_token_id, config.eos_token_id):
        if value is not None:
            return int(torch.as_tensor(value).flatten()[0])
    return 0
