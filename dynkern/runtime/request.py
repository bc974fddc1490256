"""What goes into the engine and what comes out: plain dataclasses and the two policy protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from dynkern.arguments import check_sampling
from dynkern.cost import PassCount
from dynkern.routes import TokenProgram


@dataclass(frozen=True)
class PlanRequest:
    """What a planned policy sees of a request.

    prompt_ids: the prompt, BOS included. prompt_state: the prompt's last token as the LM head reads
    it, [E], from its full-depth prefill; None under prefill="routed" (no prefill happened yet).
    """

    id: int
    prompt_ids: Sequence[int]
    num_layers: int
    seed: int
    prompt_state: Tensor | None = None


@runtime_checkable
class PlannedPolicy(Protocol):
    """Decides a route per sequence before it decodes; any Python may stand behind it.

    With an attribute `sees_prompt_state = False` it is asked as soon as a request is submitted,
    without the prompt's state, so that a scheduler knows the route of a request that waits.
    """

    def plan(self, requests: Sequence[PlanRequest]) -> Sequence[Any]:
        """One route (num_layers booleans, at least one True) for each request, in order."""
        ...


@runtime_checkable
class TokenPolicy(Protocol):
    """Decides in every pass on the device; hands executors declarative data."""

    def lower(self, num_layers: int) -> TokenProgram:
        """The program for a model of `num_layers`; ValueError where it does not fit."""
        ...


Policy = PlannedPolicy | TokenPolicy


@dataclass(frozen=True)
class SamplingParams:
    """How a token is picked. temperature 0 is greedy; top_k 0 and top_p 1 are off. ValueError for
    what op `sample` would not take, greedy or not.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty)

    @property
    def is_greedy(self) -> bool:
        """Whether plain arg-max over the model's own logits decides."""
        return self.temperature == 0.0 and self.repetition_penalty == 1.0


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    prompt_ids: at least one id. eos_token_ids: generation stops on any of them. force_length: EOS
    is ignored and exactly max_new_tokens are generated; the text still ends at the first EOS.
    deadline: any comparable number, say seconds; the earliest is served first, None last, and
    equal ones in order of submission.
    """

    id: int
    prompt_ids: tuple[int, ...]
    policy: Policy
    max_new_tokens: int
    eos_token_ids: frozenset[int]
    force_length: bool = False
    sampling: SamplingParams = SamplingParams()
    deadline: float | None = None


@dataclass
class Completion:
    """What came of a request.

    token_ids: generated ids, EOS included where it stopped the row. layers_run: layers executed
    in each routed pass (tokens 2..N), counted where layers run. layer_counts: for each layer, the
    routed passes of this row that ran it. text: special tokens dropped; None without a tokenizer.
    stop_reason: "stopped" by on_pass, "cancelled" by whoever asked: what was generated is kept.
    """

    request_id: int
    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str | None = None
    stop_reason: Literal["eos", "length", "stopped", "cancelled"] | None = None
    layers_run: list[int] = field(default_factory=list)
    layer_counts: list[int] = field(default_factory=list)

    @property
    def mean_layers(self) -> float | None:
        """Mean of layers_run; None if no pass was routed."""
        return sum(self.layers_run) / len(self.layers_run) if self.layers_run else None


@dataclass
class RunStats:
    """Wall-clock seconds and executed work of one run; passes are the routed ones, in order.

    prefilled: tokens of prompts that were prefilled. schedule: "fifo" or "cohort", as named or as
    the cost model chose; predicted: decode seconds that it expected of either for the requests it
    looked at, {} where it was not asked. Only their ratio means something unless the engine has a
    measured cost model.
    """

    seconds: float = 0.0
    seconds_prefill: float = 0.0
    seconds_decode: float = 0.0
    new_tokens: int = 0
    passes: list[PassCount] = field(default_factory=list)
    prefilled: int = 0
    schedule: str | None = None
    predicted: dict[str, float] = field(default_factory=dict)


@dataclass
class RunResult:
    """Completions in request order, and what the run took."""

    completions: list[Completion]
    stats: RunStats


@dataclass(frozen=True)
class TokenEvent:
    """A token as soon as the host has read it; `completion` is set with the last one of a row.

    token_id is None where a stream reports that a row was cancelled.
    """

    request_id: int
    token_id: int | None
    completion: Completion | None = None
