"""The commands of qwen3: flags, defaults, exit codes. The work is done elsewhere.

What a command needs is imported inside it: start-up time is part of every answer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from quant.errors import QuantError
from qwen3cli import __version__
from qwen3cli.cli.chat import chat
from qwen3cli.cli.config import settings
from qwen3cli.cli.evaluate import evaluation
from qwen3cli.cli.help import fit_narrow_terminals
from qwen3cli.cli.run import run
from qwen3cli.cli.session import sessions
from qwen3cli.errors import INTERRUPTED, DoesNotFit, Qwen3Error, UsageError
from qwen3cli.options import (
    Added,
    Context,
    DropMisses,
    Gpu,
    Json,
    KvType,
    ModelArgument,
    ModelName,
    PreferCached,
    QuantizerThreads,
    Ram,
    Reading,
    Threads,
    Vram,
    complete_models,
    shared,
)
from qwen3cli.screen.streams import OutputClosed, reason
from qwen3cli.terminal import CLOSED_OUTPUT, Terminal

# Help is plain text and errors are one line: Rich would double the start-up time.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
fit_narrow_terminals()


def main() -> int:
    """Runs the command line; returns the exit code."""
    terminal = Terminal()
    try:
        try:
            return app(standalone_mode=False, prog_name="qwen3", obj=terminal) or 0
        except SystemExit as end:  # completion is done; 1: nobody reads the help
            return CLOSED_OUTPUT if end.code else 0
        except (KeyboardInterrupt, typer.Abort):
            return INTERRUPTED
        except OutputClosed:
            raise
        except Exception as error:
            text, code = _explained(error)
            terminal.note(f"qwen3: {text}")
            return code
    except OutputClosed:  # noticed by the command, or by the note about its error
        return CLOSED_OUTPUT


def _explained(error: Exception) -> tuple[str, int]:
    """What to tell about an error, and the exit code. QWEN3_TRACEBACK raises it instead."""
    wrong_usage: Any = typer.BadParameter.__base__  # click.UsageError, wherever Typer keeps it
    if isinstance(error, Qwen3Error | QuantError):
        return str(error), error.exit_code
    if isinstance(error, wrong_usage):
        command = error.ctx.command_path if error.ctx else "qwen3"
        return f"{error.format_message()} (see {command} -h)", UsageError.exit_code
    if os.environ.get("QWEN3_TRACEBACK"):
        raise error
    if isinstance(error, MemoryError):
        return "out of memory", DoesNotFit.exit_code
    if isinstance(error, OSError):
        return f"{error.filename or 'error'}: {reason(error)}", Qwen3Error.exit_code
    return f"internal error: {type(error).__name__}: {error}", Qwen3Error.exit_code


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwen3 {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def qwen3(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A local runtime for the Qwen3 family: answers, with thinking you can budget."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


# As quant.recipes has them; importing it takes longer than the help.
_TYPES = (
    "F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q5_1, Q5_0, Q4_K_M, Q4_K_S, IQ4_NL, IQ4_XS, "
    "Q4_1, Q4_0, MOE_Q4"
)


_MORE_WORDS = {"allow_extra_args": True}  # they tell what is wrong with it
app.command(context_settings=_MORE_WORDS)(run)
app.command(context_settings=_MORE_WORDS)(chat)


@app.command()
def replay(
    context: typer.Context,
    receipt: Annotated[str, typer.Argument(metavar="FILE", help="What `run --receipt` wrote.")],
    model: ModelName = None,
    ram: Ram = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> int:
    """Repeat an answer from its receipt, or tell what differs.

    Exit code 1: another model, or another text.
    """
    from qwen3cli.run.replay import replay

    return replay(receipt, context.obj, model=model, ram=ram, threads=threads, as_json=as_json)


@app.command()
def fit(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="A GGUF file or a name.", autocompletion=complete_models
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            "--ram",
            metavar="8G|auto",
            help="The memory to fit it into (default: auto, what is available).",
            show_default=False,
        ),
    ] = None,
    gpu: Gpu = None,
    vram: Annotated[
        str | None,
        typer.Option(
            "--vram",
            metavar="6G|auto",
            help="The GPU's memory; without a GPU, as if there were one.",
            show_default=False,
        ),
    ] = None,
    ctx: Context = None,
    kv: KvType = None,
    threads: Threads = 0,
    everything: Annotated[
        bool, typer.Option("--all", help="Every release in every quantization.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell what fits into memory, and how fast it will be.

    A model need not be installed; without one, all are compared and one is recommended. The
    machine is measured anew: up to three seconds.
    """
    from qwen3cli.plan.fit import Memory

    memory = Memory(ram, gpu, vram)
    if model is None:
        from qwen3cli.plan.overview import overview

        overview(
            context.obj,
            memory=memory,
            n_ctx=ctx,
            kv=kv,
            threads=threads,
            everything=everything,
            as_json=as_json,
        )
        return
    from qwen3cli.plan.fit import fit

    if everything:
        raise UsageError("--all does not go with a model")
    fit(model, context.obj, memory=memory, n_ctx=ctx, kv=kv, threads=threads, as_json=as_json)


@app.command()
def doctor(context: typer.Context, as_json: Json = False) -> int:
    """Describe this machine, and what is wrong with it.

    Exit code 1: something has to be repaired.
    """
    from qwen3cli.doctor import doctor

    return doctor(context.obj, as_json=as_json)


@app.command()
def bench(
    context: typer.Context,
    model: ModelName = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:TYPE",
            help="Random weights of a real shape, such as 4b:q4_k_m, made once.",
            show_default=False,
        ),
    ] = None,
    prefill: Annotated[
        str, typer.Option(metavar="N,...", help="Lengths of prompts, in tokens.")
    ] = "512",
    decode: Annotated[
        int, typer.Option(metavar="N", help="Tokens decoded one by one.", min=1, max=100_000)
    ] = 64,
    depth: Annotated[
        str, typer.Option(metavar="N,...", help="Tokens in the context before the decoding.")
    ] = "0",
    ram: Annotated[
        str | None,
        typer.Option(
            metavar="8G,...",
            help="Memories for a mixture of experts: how fast it decodes with each of them.",
            show_default=False,
        ),
    ] = None,
    routes: Annotated[
        str | None,
        typer.Option(
            metavar="own|uniform|FILE",
            help="With --ram: the experts are chosen by the router (the default), all alike, or "
            "as a csv(.gz) has it in the columns step, layer, slot, expert.",
            show_default=False,
        ),
    ] = None,
    guess: Annotated[
        bool | None,
        typer.Option(
            "--guess/--no-guess",
            help="With --ram: read experts ahead by a guess, always or never (default: where it "
            "is faster).",
            show_default=False,
        ),
    ] = None,
    gpu: Gpu = None,
    vram: Vram = None,
    prefer_cached: PreferCached = 0.0,
    drop_misses: DropMisses = 0.0,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg", help="With --ram: the chart goes there.", show_default=False
        ),
    ] = None,
    threads: Threads = 0,
    rounds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Times all is measured (default: 3; with --ram, once).",
            min=1,
            max=1000,
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="PEER",
            help="llama.cpp, in turns; it counts with its better layout, or with the one "
            "named in llama.cpp:plain and llama.cpp:repacked.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure prefill and decode beside the machine's limits."""
    from qwen3cli.bench.speed import Plan, bench

    plan = Plan.parse(prefill, decode, depth, rounds or (1 if ram else 3))
    if ram is not None:
        from qwen3cli.bench.ram import Approximation, Request, bench_ram

        if against is not None:
            raise UsageError("--against does not go with --ram")
        given = map(context.get_parameter_source, ("gpu", "vram"))
        if any(source and source.name == "COMMANDLINE" for source in given):
            raise UsageError(
                "--gpu and --vram do not go with --ram, which measures the CPU's tiers"
            )
        approximation = Approximation(prefer_cached, drop_misses)
        request = Request.parse(ram, plan, routes, plot, guess, approximation)
        bench_ram(model, synthetic, request, context.obj, threads=threads, as_json=as_json)
        return
    if routes is not None or plot is not None or guess is not None or prefer_cached or drop_misses:
        raise UsageError(
            "--routes, --plot, --guess, --prefer-cached and --drop-misses go with --ram"
        )
    bench(
        model,
        synthetic,
        plan,
        context.obj,
        threads=threads,
        gpu=gpu,
        vram=vram,
        against=against,
        as_json=as_json,
    )


@app.command()
def pull(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name, such as 0.6b or 4b:q8_0, or OWNER/NAME.",
            autocompletion=complete_models,
        ),
    ],
    weights: Annotated[
        bool, typer.Option("--weights", help="The safetensors, for quantize.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="R", help="A branch, tag or commit (default: main)."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Look whether it is here; use no network.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch a model from the Hugging Face Hub into its cache.

    What an interrupted pull received is kept, and the next one goes on from there. Every file
    is checked against the hub's checksum; exit code 7: it is another one.
    """
    from qwen3cli.library.pull import pull

    pull(model, context.obj, weights=weights, revision=revision, offline=offline, as_json=as_json)


@app.command()
def ls(context: typer.Context, as_json: Json = False) -> None:
    """List the models on this machine."""
    from qwen3cli.library.installed import ls

    ls(context.obj, as_json=as_json)


@app.command()
def rm(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Names or paths, as in `ls`.", autocompletion=complete_models
        ),
    ],
    weights: Annotated[
        bool, typer.Option("--weights", help="The safetensors, not the GGUF file.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove models from the Hugging Face cache or the models folder.

    Tells what goes and what else needs it, and asks; in a pipe --yes is needed.
    """
    from qwen3cli.library.remove import rm

    rm(models, context.obj, weights=weights, yes=yes, as_json=as_json)


@app.command()
def quantize(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A Hugging Face folder, a GGUF file of floats, or a model's name.",
            autocompletion=complete_models,
        ),
    ],
    q4: Annotated[bool, typer.Option("--q4", help="As --type Q4_K_M.")] = False,
    q8: Annotated[bool, typer.Option("--q8", help="As --type Q8_0.")] = False,
    recipe: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help=f"Types of the weights: {_TYPES}.")
    ] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            help="Another type for the matrices whose name the regular expression is found in, "
            "such as ffn_down=q6_k; may be repeated, the last one that matches counts.",
        ),
    ] = None,
    allow_requantize: Annotated[
        bool,
        typer.Option("--allow-requantize", help="SRC may be quantized already: errors add up."),
    ] = False,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", metavar="PATH", help="The file to write, or its folder."),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix", metavar="FILE", help="What `qwen3 imatrix` wrote, or llama-imatrix."
        ),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Print the types and the size, write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of this name.")] = False,
    split_size: Annotated[
        str | None,
        typer.Option(
            "--split-size", metavar="N", help="Files of at most N bytes each, such as 4G."
        ),
    ] = None,
    threads: QuantizerThreads = 0,
) -> None:
    """Quantize Hugging Face weights, or a GGUF file, to GGUF.

    Without -o the file goes to the current folder; of a model's name to where -m finds it.
    """
    from qwen3cli.quantize import dry_run, quantize

    chosen = [t for t in ("Q4_K_M" if q4 else None, "Q8_0" if q8 else None, recipe) if t]
    if len(chosen) != 1:
        raise UsageError("choose one of --q4, --q8 and --type TYPE")
    what: dict[str, Any] = {
        "overrides": tensor or [],
        "allow_requantize": allow_requantize,
        "split_size": split_size,
        "imatrix": imatrix,
    }
    if dry:
        dry_run(source, chosen[0], context.obj, **what)
    else:
        quantize(source, out, chosen[0], context.obj, force=force, threads=threads, **what)


@app.command()
def verify(
    context: typer.Context,
    model: ModelArgument,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SRC",
            help="What it was made from: a Hugging Face folder, a GGUF file of floats, a name.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Its weights in the cache: their checksums alone.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch damaged files of the cache again.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="A line for every tensor.")] = False,
    threads: QuantizerThreads = 0,
    as_json: Json = False,
) -> int:
    """Check whether a model file is whole, and close to its source.

    A file from the hub is compared with its checksum, too. Exit code 7: it is not.
    """
    from qwen3cli.library.verify import verify, verify_weights

    if weights:
        if source is not None or tensors:
            raise UsageError("--weights goes with neither --source nor --tensors")
        return verify_weights(model, context.obj, repair=repair, as_json=as_json)
    return verify(
        model,
        source,
        context.obj,
        repair=repair,
        tensors=tensors,
        threads=threads,
        as_json=as_json,
    )


@app.command()
@shared
def imatrix(
    context: typer.Context,
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            metavar="PATH",
            help="The file to write, or its folder (default: MODEL-imatrix.gguf, here).",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an importance matrix of this name.")
    ] = False,
    *,
    reading: Reading,
) -> None:
    """Collect the importance of weights, for quantize --imatrix.

    The model reads the texts, chunk by chunk. Ctrl-C ends that; what was collected until then
    is written.
    """
    from qwen3cli.imatrix import imatrix

    imatrix(reading, out, context.obj, force=force)


app.add_typer(evaluation, name="eval")


@app.command()
def show(
    context: typer.Context,
    model: ModelArgument,
    tensors: Annotated[
        bool, typer.Option("--tensors/--no-tensors", help="With the tensors, or their sum alone.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Show the metadata and the tensors of a model file."""
    from qwen3cli.library.obtain import resolve
    from qwen3cli.library.show import show

    show(resolve(model, context.obj), context.obj, tensors=tensors, as_json=as_json)


@app.command()
def tokenize(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A text file; -: stdin.")] = "-",
    model: ModelName = None,
    added: Added = False,
    as_json: Json = False,
) -> None:
    """Show the tokens of a text.

    Id and piece on each line; their count on stderr.
    """
    from qwen3cli.library.show import tokenize

    tokenize(model, file, context.obj, added=added, as_json=as_json)


app.add_typer(settings, name="config")
app.add_typer(sessions, name="session")
