"""The command line: eval, generate, info, doctor, and the commands of commands/."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dynkern.commands import (
    analyze,
    bench,
    bundle,
    calibrate,
    explain,
    finetune,
    oracle,
    pretrain,
    reproduce,
    tasks,
    train_controller,
)
from dynkern.report.command import given

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


Model = Annotated[str, typer.Option(help="Checkpoint directory or hub id.")]
Backend = Annotated[str, typer.Option(help="auto, reference, cpu, triton or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")]
KVFill = Annotated[str, typer.Option(help="project, copy, deferred or mask (token policies).")]
Prefill = Annotated[str, typer.Option(help="full, or routed (planned policies only).")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]


@app.command("eval")
def evaluate(
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint directory or hub id; default: the bundled model."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help=".json, .jsonl or .csv file, tasks:SPLIT, or hub id; default: 256 of tasks:test."
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Policy spec; repeat it. full is always added. Default for the bundled model: "
            "uniform, early exit, random, oracle and predictor."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "test",
    limit: Annotated[int | None, typer.Option(help="First N records only.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows that decode together.")] = 8,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens to generate at most; default: 64, 32 without --data.")
    ] = None,
    prefill: Prefill = "full",
    kv_fill: KVFill = "project",
    repeat: Annotated[int, typer.Option(help="Timed rounds.")] = 3,
    seed: Seed = 0,
    template: Annotated[
        str | None,
        typer.Option(help="alpaca or plain; default: alpaca, plain for the bundled model."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for results.json, samples.jsonl, curve.png.")
    ] = Path("dynkern-eval"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    no_timing: Annotated[bool, typer.Option("--no-timing", help="Quality only.")] = False,
) -> None:
    """Measure wall-clock time and ROUGE-L of policies on real prompts.

    Without arguments: the bundled model on the synthetic task suite, under a standard set.
    """
    from dynkern.evaluation.standard import defaults, run_eval
    from dynkern.evaluation.sweep import SweepConfig

    run_eval(
        SweepConfig(
            **defaults(model, data, template, limit, max_new_tokens),
            policies=tuple(policy or ()),
            split=split,
            batch_size=batch_size,
            backend=backend,
            dtype=dtype,
            prefill=prefill,
            kv_fill=kv_fill,
            repeat=repeat,
            seed=seed,
            output=output,
            resume=resume,
            timing=not no_timing,
        )
    )


@app.command()
def generate(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The prompt, or the instruction of a template; without it: a loop that reads them."
        ),
    ] = None,
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
    """Stream answers, one or a loop of them; layers run and tokens per second go to stderr."""
    from dynkern.commands.generate import Answering, Conversation, answer
    from dynkern.llm import LLM
    from dynkern.runtime.request import SamplingParams

    how = Answering(
        policy=policy,
        template=template,
        input=input_text,
        max_new_tokens=max_new_tokens,
        prefill=prefill,
        kv_fill=kv_fill,
        seed=seed,
        sampling=SamplingParams(temperature, top_k, top_p),
    )
    if prompt is None and input_text:
        raise ValueError(f"--input: got {input_text!r}, expected it with --prompt only")
    llm = LLM(model, dtype=dtype, backend=backend)
    how.check(llm)
    if prompt is None:
        raise typer.Exit(Conversation(llm, how).run())
    answer(llm, prompt, how)


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


for command in (
    explain,
    oracle,
    tasks,
    finetune,
    pretrain,
    bundle,
    train_controller,
    calibrate,
    analyze,
    reproduce,
    bench,
):
    command.register(app)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2, Ctrl-C is 130."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:  # on the way into `_run` or out of it
        return _stopped(words)
    except BrokenPipeError:  # `dynkern … | head`: nobody reads on, and nothing is wrong
        _drop_stdout()
        return 0
    except OSError as error:
        _drop_stdout()
        return _complain(f"stdout: cannot be written ({error.strerror}), expected room for it")


def _run(words: list[str]) -> int:
    try:
        with given(words):
            result = app(args=words, standalone_mode=False)
        # typer answers Ctrl-C with this exit code, older ones with an exception
        return _stopped(words) if result == 130 else result if isinstance(result, int) else 0
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help text
            print(error.format_message())
            return 2
        return _complain(error.format_message() + _given(words, error))
    except (ValueError, NotImplementedError) as error:
        return _complain(str(error))
    except MemoryError as error:
        return _complain(f"out of memory: {error}")
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.strerror is None:  # one of our own, or of a library that says more
            return _complain(str(error))
        if error.filename is None:
            raise
        return _complain(f"{error.filename}: {error.strerror}")
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(words)


def _given(words: list[str], error: Exception) -> str:
    """What stands behind the option that is complained of, where typer does not say it."""
    message, names = str(error), getattr(getattr(error, "param", None), "opts", ())
    for place, word in enumerate(words[1:], 1):
        value = word if words[place - 1] in names else None
        if word.partition("=")[0] in names and "=" in word:
            value = word.partition("=")[2]
        if value is not None and repr(value) not in message:
            return f" (got {value!r})"
    return ""


def _drop_stdout() -> None:
    """Let what is still held back for stdout go nowhere, or Python complains when it ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # stdout is no file, or closed
        pass


def _stopped(words: list[str]) -> int:
    resumable = words[:1] in (["eval"], ["oracle"], ["pretrain"])
    hint = f"; --resume goes on with a stopped {words[0]}" if resumable else ""
    print(f"\ndynkern: stopped{hint}", file=sys.stderr)
    return 130


def _complain(message: str) -> int:
    print("dynkern: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
