"""`dynkern oracle`: quality of every prompt under every route of a family, kept in a table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dynkern.allocation.families import RouteSet, check_family, make_routes
from dynkern.allocation.schema import FILE_NAME, PromptRow, digest_ids
from dynkern.allocation.store import TableStore, remove
from dynkern.data import TEMPLATES, load_records, response_text
from dynkern.evaluation.allocation_report import report_allocation
from dynkern.evaluation.fill import Filling, fill_agreements, fill_losses, fill_rows
from dynkern.evaluation.greedy import removal_order
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.quality import Prompt
from dynkern.evaluation.shards import check_leftover, shard_path, shard_paths
from dynkern.evaluation.sweep import (
    data_digest,
    digest,
    encode_prompts,
    model_identity,
)
from dynkern.files import make_folder
from dynkern.llm import LLM
from dynkern.routes import check_choice
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.request import SamplingParams
from dynkern.team import Team


@dataclass(frozen=True)
class OracleConfig:
    """The arguments of `dynkern oracle`."""

    model: str
    data: str
    family: str = "uniform"
    budgets: str | None = None
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    split: str = "test"
    limit: int | None = None
    validation: str | None = None
    validation_limit: int = 64
    batch_size: int = 32
    backend: str = "auto"
    dtype: str = "auto"
    max_new_tokens: int = 64
    seed: int = 0
    template: str = "alpaca"
    output: Path = Path("dynkern-oracle")
    resume: bool = False
    losses: bool = True

    def check(self) -> None:
        """ValueError ahead of any loading."""
        check_family(self.family)
        RunOptions(self.batch_size, "full", "project", self.seed)
        check_choice("template", self.template, TEMPLATES)
        for name in ("max_new_tokens", "samples", "validation_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        # the op says the same, but only once rows decode
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: got {self.temperature}, expected 0 or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p: got {self.top_p}, expected more than 0, up to 1")
        if self.samples > 1 and self.sampling.is_greedy:
            raise ValueError(
                f"samples: got {self.samples} of greedy decoding, which are all the same; give "
                "--temperature, e.g. 0.7"
            )

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are picked."""
        return SamplingParams(self.temperature, top_p=self.top_p)

    @property
    def table(self) -> Path:
        """The file that is filled."""
        return self.output / FILE_NAME


def run_oracle(config: OracleConfig, console: Console | None = None) -> Path:
    """Fill the table, join the shards of other processes, report the allocation; the folder.

    Under a launcher each rank fills a shard of its own. Raises ValueError or FileNotFoundError, one
    line, on bad input; an interrupt or a kill loses only the rows in flight, and `resume` goes on.
    """
    config.check()
    with Team() as team:
        console = console or Console(quiet=not team.leads)
        records = load_records(config.data, config.split, config.limit)
        llm = LLM(config.model, config.dtype, config.backend, team.device)
        if not config.family == "greedy":
            make_routes(config.family, llm.spec.num_layers, config.budgets, config.seed)
        prompts, _ = encode_prompts(llm, records, config.template, config.max_new_tokens)
        filling = Filling(
            llm,
            prompts,
            answer_ids(llm, prompts),
            config.samples,
            config.sampling,
            config.max_new_tokens,
            config.batch_size,
            config.seed,
        )
        manifest = _manifest(llm, prompts, config)
        with Progressing(console) as progress:
            if team.leads:
                _prepare(filling, config, manifest, progress)
            team.wait()
            if team.size == 1:
                with TableStore.create(config.table, manifest, resume=True) as store:
                    _fill(filling, prompts, store, config.losses, progress)
            else:
                _fill_shard(filling, config, manifest, team, progress)
                team.wait()
            if team.leads:
                finish_table(config.table, progress)
    if team.leads:
        report_allocation(
            config.table, config.output, console, seed=config.seed, records=records, call=config
        )
    return config.output


def answer_ids(llm: LLM, prompts: list[Prompt]) -> list[list[int]]:
    """Each record's answer as ids with EOS, cut to the positions that its prompt leaves."""
    eos = llm.spec.eos_token_id
    targets = []
    for prompt in prompts:
        text = response_text(prompt.record)
        ids = llm.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        targets.append([*ids, eos][: llm.spec.max_positions - len(prompt.ids) + 1])
    return targets


def _manifest(llm: LLM, prompts: list[Prompt], config: OracleConfig) -> dict[str, Any]:
    """What decides the rows: a table that is gone on with must agree in all of it."""
    num_layers = llm.spec.num_layers
    manifest = {
        "model": model_identity(llm),
        "data": data_digest(prompts),
        "prompts": len(prompts),
        "template": config.template,
        "dtype": str(llm.dtype).removeprefix("torch."),
        "executor": llm.engine.executor.name,
        "isa": llm.engine.executor.isa,
        "family": config.family,
        "samples": config.samples,
        "sampling": asdict(config.sampling),
        "max_new_tokens": config.max_new_tokens,
        "seed": config.seed,
    }
    if config.family == "greedy":
        # the order of removal is not known yet; what it is searched on is
        order = list(range(num_layers))
        made = make_routes("greedy", num_layers, config.budgets, order=order)
        manifest["validation"] = digest(repr(_validation(llm, config)).encode())
    else:
        made = make_routes(config.family, num_layers, config.budgets, config.seed)
        manifest["routes"] = digest(repr(made.keep).encode())
    return manifest | {"budgets": ",".join(made.names)}


def _validation(llm: LLM, config: OracleConfig) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and targets that greedy removal is searched on."""
    if config.validation is None and Path(config.data).suffix:
        raise ValueError(
            "validation: got none, expected a file of records for --family greedy to search on, "
            "apart from --data"
        )
    source = config.validation or config.data
    records = load_records(source, "validation", config.validation_limit)
    prompts, _ = encode_prompts(llm, records, config.template, config.max_new_tokens)
    return [prompt.ids for prompt in prompts], answer_ids(llm, prompts)


def _prepare(
    filling: Filling, config: OracleConfig, manifest: dict[str, Any], progress: Progressing
) -> None:
    """Lay the table out with its routes and prompts, and join shards that a stopped run left."""
    make_folder(config.output)
    leftover = shard_paths(config.table)
    check_leftover(leftover, config.resume)
    with TableStore.create(config.table, manifest, config.resume) as store:
        store.check_rows()
        llm = filling.llm
        made = store.route_set()
        if made is None:
            order = None
            if config.family == "greedy":
                ids, targets = _validation(llm, config)
                report = progress.task("greedy removal")
                order = removal_order(llm, ids, targets, store, config.batch_size, report)
            made = make_routes(
                config.family, llm.spec.num_layers, config.budgets, config.seed, order
            )
            store.put_routes(made)
        store.put_prompts(prompt_rows(filling.prompts))
        for shard in leftover:
            store.merge(shard)
    for shard in leftover:
        remove(shard)


def prompt_rows(prompts: list[Prompt]) -> list[PromptRow]:
    """The prompts as the table keeps them."""
    return [
        PromptRow(p.index, p.record.id, digest_ids(p.ids), len(p.ids), p.record.source)
        for p in prompts
    ]


def _fill(
    filling: Filling,
    prompts: list[Prompt],
    store: TableStore,
    losses: bool,
    progress: Progressing,
    elsewhere: TableStore | None = None,
) -> None:
    """Fill rows, then losses, of `prompts` that neither store has."""
    routes = store.route_set()
    assert routes is not None
    done, priced = store.done(), store.losses_done()
    if elsewhere is not None:
        done, priced = done | elsewhere.done(), priced | elsewhere.losses_done()
    fill_rows(filling, prompts, routes, store, done, progress.task("texts"))
    if losses:
        fill_losses(filling, prompts, routes, store, priced, progress.task("losses"))


def _fill_shard(
    filling: Filling,
    config: OracleConfig,
    manifest: dict[str, Any],
    team: Team,
    progress: Progressing,
) -> None:
    path = shard_path(config.table, team)
    mine = filling.prompts[team.rank :: team.size]
    with TableStore.connect(config.table) as whole:
        routes = whole.route_set()
        with TableStore.create(path, manifest, resume=True) as shard:
            assert isinstance(routes, RouteSet)
            shard.put_routes(routes)
            _fill(filling, mine, shard, config.losses, progress, elsewhere=whole)


def finish_table(table: Path, progress: Progressing) -> int:
    """Join the shards beside a table, compare rows with the full route; how many rows came.

    Doing it again changes nothing. Shards are deleted once their rows are safe in the table.
    """
    shards = shard_paths(table)
    with TableStore(table, writable=True) as store:
        taken = sum(store.merge(shard) for shard in shards)
        fill_agreements(store, progress.task("agreement"))
    for shard in shards:
        remove(shard)
    return taken
