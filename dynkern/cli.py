"""The command line: `dynkern eval | generate | info | doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dynkern.commands.analyze import app as analyze
from dynkern.commands.calibrate import calibrate
from dynkern.commands.finetune import finetune
from dynkern.commands.reproduce import reproduce
from dynkern.commands.train_controller import train_controller

# typer brings click along, under its own name from 0.29 on; this is click's base of usage errors
_UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")

app = typer.Typer(
    name="dynkern",
    help="Layer skipping for OPT, measured in seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(analyze, name="analyze")
app.command()(calibrate)
app.command()(finetune)
app.command()(reproduce)
app.command("train-controller")(train_controller)

Model = Annotated[str, typer.Option(help="Checkpoint directory or hub id.")]
Backend = Annotated[str, typer.Option(help="auto, reference, cpu, triton or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")]
KVFill = Annotated[str, typer.Option(help="project, copy, deferred or mask (token policies).")]
Prefill = Annotated[str, typer.Option(help="full, or routed (planned policies only).")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]


@app.command("eval")
def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(help=".json, .jsonl or .csv file, or hub id.")],
    policy: Annotated[
        list[str] | None, typer.Option(help="Policy spec; repeat it. full is always added.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "test",
    limit: Annotated[int | None, typer.Option(help="First N records only.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows that decode together.")] = 8,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    prefill: Prefill = "full",
    kv_fill: KVFill = "project",
    repeat: Annotated[int, typer.Option(help="Timed rounds.")] = 3,
    seed: Seed = 0,
    template: Annotated[str, typer.Option(help="alpaca or plain.")] = "alpaca",
    output: Annotated[
        Path, typer.Option(help="Folder for results.json, samples.jsonl, curve.png.")
    ] = Path("dynkern-eval"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    no_timing: Annotated[bool, typer.Option("--no-timing", help="Quality only.")] = False,
) -> None:
    """Measure wall-clock time and ROUGE-L of policies on real prompts."""
    from dynkern.evaluation.sweep import SweepConfig, run_sweep

    run_sweep(
        SweepConfig(
            model=model,
            data=data,
            policies=tuple(policy or ()),
            split=split,
            limit=limit,
            batch_size=batch_size,
            backend=backend,
            dtype=dtype,
            max_new_tokens=max_new_tokens,
            prefill=prefill,
            kv_fill=kv_fill,
            repeat=repeat,
            seed=seed,
            template=template,
            output=output,
            resume=resume,
            timing=not no_timing,
        )
    )


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The prompt, or the instruction of a template.")],
    policy: Annotated[str, typer.Option(help="Policy spec, e.g. uniform:6.")] = "full",
    template: Annotated[
        str | None, typer.Option(help="alpaca or plain; default: the prompt as it is.")
    ] = None,
    input_text: Annotated[str, typer.Option("--input", help="Input field of the template.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    prefill: Prefill = "full",
    kv_fill: KVFill = "project",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    seed: Seed = 0,
) -> None:
    """Stream one answer; layers run and tokens per second go to stderr."""
    from dynkern.data import Record, encode_prompt, prompt_cap
    from dynkern.llm import LLM
    from dynkern.runtime.request import Completion, RunStats, SamplingParams

    llm = LLM(model, dtype=dtype, backend=backend)
    ids: str | list[int] = prompt
    if template is not None:
        record = Record(id="0", instruction=prompt, input=input_text, output="", references=())
        cap = prompt_cap(template, llm.spec.max_positions - max_new_tokens + 1)
        ids = encode_prompt(llm.tokenizer, record, template, cap, llm.spec.bos_token_id).ids
    elif input_text:
        raise ValueError("--input: given without --template, expected with one")

    def on_done(completion: Completion, stats: RunStats) -> None:
        seconds = stats.seconds_prefill + stats.seconds_decode
        layers = "no routed pass"
        if completion.mean_layers is not None:
            layers = f"{completion.mean_layers:.1f} of {llm.spec.num_layers} layers a token"
        sys.stdout.write("\n")
        sys.stdout.flush()
        typer.echo(
            f"[{stats.new_tokens} tokens, {layers}, {stats.new_tokens / seconds:.1f} tokens/s, "
            f"prefill {stats.seconds_prefill * 1e3:.0f} ms]",
            err=True,
        )

    pieces = llm.stream(
        ids,
        policy,
        max_new_tokens=max_new_tokens,
        prefill=prefill,
        kv_fill=kv_fill,
        seed=seed,
        sampling=SamplingParams(temperature, top_k, top_p),
        on_done=on_done,
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()


@app.command()
def info() -> None:
    """What is installed, which backend each op takes here, and why."""
    from dynkern.evaluation.info import print_info

    print_info()


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint directory or hub id; default: a random model.")
    ] = None,
    backend: Backend = "auto",
    seed: Seed = 0,
) -> None:
    """Prove on this machine that skipped layers are not run: counters, parity, time."""
    from dynkern.evaluation.doctor import run_doctor

    raise typer.Exit(0 if run_doctor(model, backend, seed) else 1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    try:
        result = app(args=arguments, standalone_mode=False)
        # typer answers Ctrl-C with this exit code, older ones with an exception
        return _stopped() if result == 130 else result if isinstance(result, int) else 0
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help text
            print(error.format_message())
            return 2
        return _complain(error.format_message())
    except (ValueError, OSError, NotImplementedError) as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()


def _stopped() -> int:
    print("\ndynkern: stopped; --resume goes on with a stopped eval", file=sys.stderr)
    return 130


def _complain(message: str) -> int:
    print("dynkern: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
