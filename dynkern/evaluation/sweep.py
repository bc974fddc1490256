"""`dynkern eval`: quality and time of several policies on one data set, from files to report."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from dynkern.data import TEMPLATES, Record, encode_prompt, load_records, prompt_cap
from dynkern.evaluation.analysis import aggregate
from dynkern.evaluation.eval_page import eval_report, observe
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.quality import Prompt, run_quality
from dynkern.evaluation.report import RUN_KEYS, plot_curve, print_table, write_results
from dynkern.evaluation.samples import SampleStore, rows_of
from dynkern.evaluation.shards import check_leftover, shard_path, shard_paths
from dynkern.evaluation.speed import SpeedReport, TimingPlan, measure_speed
from dynkern.files import make_folder
from dynkern.llm import LLM
from dynkern.policies import check_policy, is_planned
from dynkern.policies import policy as make_policy
from dynkern.report import Report, write_report
from dynkern.routes import check_choice
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.request import Policy
from dynkern.team import Team

# batches that the timing pass runs at natural lengths; more prompts say nothing new about time
TIMED_BATCHES = 4


@dataclass(frozen=True)
class SweepConfig:
    """The arguments of `dynkern eval`."""

    model: str
    data: str
    policies: tuple[str, ...] = ()
    split: str = "test"
    limit: int | None = None
    batch_size: int = 8
    backend: str = "auto"
    dtype: str = "auto"
    max_new_tokens: int = 64
    prefill: str = "full"
    kv_fill: str = "project"
    repeat: int = 3
    seed: int = 0
    template: str = "alpaca"
    output: Path = Path("dynkern-eval")
    resume: bool = False
    timing: bool = True

    def check(self) -> dict[str, Policy]:
        """The policies by canonical spec, "full" first; ValueError ahead of any loading."""
        RunOptions(self.batch_size, self.prefill, self.kv_fill, self.seed)
        check_choice("template", self.template, TEMPLATES)
        for name in ("max_new_tokens", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        policies = {}
        for spec in ("full", *self.policies):
            policy = make_policy(spec)
            if self.prefill == "routed" and not is_planned(policy):
                raise ValueError(
                    f"prefill: 'routed' needs planned policies, got {spec!r}; use 'full'"
                )
            policies[policy.spec] = policy
        return policies

    @property
    def run(self) -> dict[str, Any]:
        """Keyword arguments of LLM.run that decide texts, besides the policy."""
        return {"prefill": self.prefill, "kv_fill": self.kv_fill, "seed": self.seed}


def run_sweep(config: SweepConfig, console: Console | None = None) -> Path:
    """Measure, print a table, write results.json, samples.jsonl, curve.png and report.html; their
    folder. The report's path is printed last.

    Under a launcher each rank generates its share of the batches into a shard of its own; rank 0
    joins them, and times policies once the others are done. Raises ValueError or
    FileNotFoundError, one line, on bad input; an interrupt or a kill loses only the rows in flight,
    and `resume` goes on from samples.jsonl and what shards there are, with any number of ranks.
    """
    page = None
    with Team() as team:
        console = console or Console(quiet=not team.leads)
        made = sweep(config, console, team)
        if made is not None:
            page = write_report(config.output, made)
    if page is not None:
        console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return config.output


def sweep(config: SweepConfig, console: Console, team: Team) -> Report | None:
    """The same but for report.html: what it would say; None of a rank that does not lead."""
    policies = config.check()
    records = load_records(config.data, config.split, config.limit)
    llm = LLM(config.model, dtype=config.dtype, backend=config.backend, device=team.device)
    for policy in policies.values():
        check_policy(policy, llm.spec.num_layers)
    prompts, truncated = encode_prompts(llm, records, config.template, config.max_new_tokens)
    on = ", ".join(f"{name} {value}" for name, value in llm.describe().items())
    counts = f"prompts {len(prompts)}, policies {len(policies)}, processes {team.size}"
    console.print(f"{counts}, {on}", highlight=False)
    started = datetime.now(timezone.utc)
    part = _Sweep(config, policies, llm, prompts, team)
    with Progressing(console) as progress:
        if not team.leads:
            part.fill_shard(progress)
            # what is timed now has the machine to itself
            return None
        with part.prepared() as store:
            part.fill(store, progress)
            speed = part.speed(progress) if config.timing else None
            runs = [_run_row(store, spec, config, speed) for spec in policies]
            seen = observe(store, list(policies), prompts)
    meta = _meta(llm, config, prompts, truncated, started, speed)
    write_results(config.output / "results.json", meta, runs)
    plot_curve(runs, config.output / "curve.png")
    print_table(console, runs, meta)
    console.print(f"results in {config.output}", highlight=False, soft_wrap=True)
    return eval_report(meta, runs, seen, config)


class _Sweep:
    """One rank's part of a sweep."""

    def __init__(
        self,
        config: SweepConfig,
        policies: dict[str, Policy],
        llm: LLM,
        prompts: list[Prompt],
        team: Team,
    ) -> None:
        self.config, self.policies, self.llm, self.team = config, policies, llm, team
        self.prompts = prompts
        self.path = config.output / "samples.jsonl"
        self._fingerprint = _fingerprint(llm, prompts, config)

    def _store(self, path: Path, resume: bool) -> SampleStore:
        order = [prompt.record.id for prompt in self.prompts]
        return SampleStore(path, self._fingerprint, resume, order)

    def prepared(self) -> SampleStore:
        """samples.jsonl, with the rows of shards that a stopped run left."""
        make_folder(self.config.output)
        check_leftover(shard_paths(self.path), self.config.resume)
        store = self._store(self.path, self.config.resume)
        try:
            self._join(store)
        except BaseException:
            store.close()
            raise
        return store

    def fill(self, store: SampleStore, progress: Progressing) -> None:
        """Rank 0: every text in samples.jsonl, those of other ranks too."""
        if self.team.size == 1:
            self._run(store, progress)
            return
        self.fill_shard(progress)
        self._join(store)

    def fill_shard(self, progress: Progressing) -> None:
        """This rank's batches, as far as samples.jsonl lacks them; every rank is done then."""
        self.team.wait()
        with self._store(shard_path(self.path, self.team), resume=True) as shard:
            self._run(shard, progress, rows_of(self.path))
        self.team.wait()

    def _run(
        self,
        store: SampleStore,
        progress: Progressing,
        elsewhere: dict[str, set[str]] | None = None,
    ) -> None:
        config, team = self.config, self.team
        run_quality(
            self.llm,
            self.prompts,
            self.policies,
            store,
            config.batch_size,
            {**config.run, "max_new_tokens": config.max_new_tokens},
            progress.task("quality"),
            rank=team.rank,
            size=team.size,
            elsewhere=elsewhere,
        )

    def _join(self, store: SampleStore) -> None:
        paths = shard_paths(self.path)
        with ExitStack() as stack:
            shards = [stack.enter_context(self._store(path, resume=True)) for path in paths]
            store.take_over(shards, list(self.policies))
        for path in paths:
            path.unlink()

    def speed(self, progress: Progressing) -> SpeedReport:
        """The timing pass, on rank 0 alone."""
        config = self.config
        plan = TimingPlan(
            [p.ids for p in self.prompts[: TIMED_BATCHES * config.batch_size]],
            self.policies,
            config.batch_size,
            config.max_new_tokens,
            config.repeat,
            config.run,
        )
        return measure_speed(self.llm, plan, progress.task("timing"))


def encode_prompts(
    llm: LLM, records: list[Record], template: str, max_new_tokens: int
) -> tuple[list[Prompt], int]:
    """The records as prompts that leave room for max_new_tokens, and how many had to be cut."""
    if llm.tokenizer is None:
        raise ValueError(f"model: {llm.path} has no tokenizer, expected one to encode the prompts")
    room = llm.spec.max_positions - max_new_tokens + 1
    if room < 1:
        raise ValueError(
            f"max_new_tokens: got {max_new_tokens}, expected up to the model's "
            f"{llm.spec.max_positions} positions"
        )
    cap = prompt_cap(template, room)
    prompts, truncated = [], 0
    for index, record in enumerate(records):
        encoded = encode_prompt(llm.tokenizer, record, template, cap, llm.spec.bos_token_id)
        truncated += encoded.truncated
        prompts.append(Prompt(index, record, encoded.ids))
    return prompts, truncated


def model_identity(llm: LLM) -> dict[str, Any]:
    """What makes it this model: its shape, and a digest of its weights."""
    weights = digest(json.dumps(llm.engine.weights.checksums()).encode())
    return asdict(llm.spec) | {"weights": weights}


def data_digest(prompts: list[Prompt]) -> str:
    """Digest of ids, encoded prompts and references."""
    content = [(p.record.id, p.ids, p.record.references) for p in prompts]
    return digest(json.dumps(content).encode())


def digest(content: bytes) -> str:
    """16 hex digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def _fingerprint(llm: LLM, prompts: list[Prompt], config: SweepConfig) -> dict[str, Any]:
    """What decides the texts: a resumed run must agree in all of it."""
    return {
        "model": model_identity(llm),
        "data": data_digest(prompts),
        "prompts": len(prompts),
        "template": config.template,
        "dtype": str(llm.dtype),
        "backend": config.backend,
        "batch_size": config.batch_size,
        "max_new_tokens": config.max_new_tokens,
        **config.run,
    }


def _run_row(
    store: SampleStore, spec: str, config: SweepConfig, speed: SpeedReport | None
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(RUN_KEYS)
    row |= {"policy": spec, "batch_size": config.batch_size}
    row |= aggregate(store.rows(spec), store.rows("full"), config.seed, config.prefill)
    return row | (speed.columns[spec] if speed is not None else {})


def _meta(
    llm: LLM,
    config: SweepConfig,
    prompts: list[Prompt],
    truncated: int,
    started: datetime,
    speed: SpeedReport | None,
) -> dict[str, Any]:
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    return {
        "arguments": arguments,
        "environment": llm.describe(),
        "num_layers": llm.spec.num_layers,
        "weight_bytes": llm.weight_bytes,
        "prompts": len(prompts),
        "prompt_tokens": sum(len(p.ids) for p in prompts) / len(prompts),
        "truncated_prompts": truncated,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "timing": None if speed is None else speed.stamp,
    }
