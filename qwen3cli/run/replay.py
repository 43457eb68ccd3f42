"""The command `replay`: what a receipt tells of is generated again, or what differs is told."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qwen3cli.engine import Grammar, Model, Session, Tokenizer
from qwen3cli.errors import ModelNotFound, Qwen3Error
from qwen3cli.interrupt import interruptible
from qwen3cli.library import obtain
from qwen3cli.opening import Opening, open_session
from qwen3cli.plan.gpu import card
from qwen3cli.prompt import Generation
from qwen3cli.reply import Compute, Reply, Run, Wishes, computed
from qwen3cli.run import receipts
from qwen3cli.run.printer import Form, Printer
from qwen3cli.run.receipts import Receipt, Sample
from qwen3cli.run.statistics import described
from qwen3cli.session import Answer
from qwen3cli.terminal import Terminal
from qwen3cli.thinking.control import ThinkTokens

_QUOTED = 8  # tokens


def replay(
    file: str,
    terminal: Terminal,
    *,
    model: str | None,
    ram: str | None,
    threads: int,
    as_json: bool,
) -> int:
    """model: where the recorded one is now; None: where it was, or by its name. The exit code:
    1 if any text is another one; then stdout has the others."""
    receipt = receipts.read(file)
    path = _find(receipt, model, terminal)
    session = _open(receipt, path, ram, threads, terminal)
    opened = session.model
    changes = _changes(receipt, opened)
    tokens = ThinkTokens.of(opened.tokenizer, opened.metadata())
    grammar = (
        None if receipt.schema is None else Grammar(opened.tokenizer, receipt.schema, tokens.end)
    )
    several = len(receipt.samples) > 1
    printer = Printer(Form(json=as_json, several=several), terminal)
    reproduced = True
    for number, sample in enumerate(receipt.samples):
        settings = receipt.settings(sample, grammar)
        clock = receipt.seconds is not None
        run = Run(session, tokens, receipt.request(), settings, wishes=Wishes())
        reply = _generate(run, sample, tokens.close if clock else None)
        difference = _difference(sample, reply, opened.tokenizer)
        reproduced &= difference is None
        if difference and not as_json:
            of = f"sample {number}: " if several else ""
            because = f" ({'; '.join(changes)})" if changes else ""
            terminal.note(f"qwen3: {of}another text than the receipt's: {difference}{because}")
            continue
        told = {"reproduced": difference is None, "difference": difference, "changes": changes}
        printer.begin(str(path), sample.seed)
        printer.part(Answer(reply.answer))
        printer.end(reply, told | described(reply, settings, opened))
    if reproduced and changes and not as_json:
        terminal.note(f"qwen3: the same text, though {'; '.join(changes)}")
    printer.finish()
    return 0 if reproduced else Qwen3Error.exit_code


def _open(
    receipt: Receipt, path: Path, ram: str | None, threads: int, terminal: Terminal
) -> Session:
    """With as many layers and experts on a GPU as there were, if that can be: another device may
    compute other bits."""
    if receipt.prefer_cached or receipt.drop_misses:
        model = Model(path, threads=threads, expert_bytes=receipt.expert_bytes)
        model.approximate(prefer=receipt.prefer_cached, drop=receipt.drop_misses)
        return model.session(n_ctx=receipt.n_ctx, kv=receipt.kv)
    opening = Opening(path, ram, None, receipt.n_ctx, receipt.kv, threads)
    found = card("auto", None) if receipt.gpu_layers else None
    if found:
        with suppress(Qwen3Error):  # else what fits, or the CPU
            exact = replace(found, layers=receipt.gpu_layers, expert_bytes=receipt.gpu_expert_bytes)
            return open_session(replace(opening, card=exact), terminal.note)
    return open_session(replace(opening, card=found), terminal.note)


def _find(receipt: Receipt, model: str | None, terminal: Terminal) -> Path:
    """The model of the receipt. Raises ModelNotFound, and Qwen3Error for another one."""
    if model is not None:
        path = obtain.resolve(model, terminal)
    elif Path(receipt.path).is_file():
        path = Path(receipt.path)
    elif receipt.model:
        path = obtain.resolve(receipt.model, terminal)
    else:
        raise ModelNotFound(f"{receipt.path}: is not there any more; -m names where it is")
    found = receipts.model_files(path, terminal)
    if set(found.values()) != set(receipt.files.values()):
        raise Qwen3Error(
            f"{path}: is not the model of the receipt: its sha256 is {_digests(found)}, not "
            f"{_digests(receipt.files)}; -m names another file"
        )
    return path


def _digests(files: dict[str, str]) -> str:
    return " + ".join(digest[:16] for digest in files.values()) or "none"


def _changes(receipt: Receipt, model: Model) -> list[str]:
    """What is not as it was, and may explain another text."""
    then, now, missing = receipt.versions, receipts.versions(model), "not told"
    if "gpu" in then or "gpu" in now:
        then, now = {"gpu": "none"} | then, {"gpu": "none"} | now
    changes = [
        f"{name} was {then.get(name, missing)} and is {now.get(name, missing)}"
        for name in {**now, **then}
        if then.get(name) != now.get(name)
    ]
    if "isa" in then and then["isa"] != now["isa"]:
        changes.append(f"QWEN3_ISA={then['isa']} computes as it was, where the processor can")
    if receipts.template(Generation(receipt.generation)) != receipt.template:
        changes.append("the template of its prompt is another one now")
    return changes


def _generate(run: Run, sample: Sample, close: int | None) -> Reply:
    """The reply of a run, as _drive computes it. Raises KeyboardInterrupt on Ctrl-C."""

    def interrupt() -> None:
        run.wishes.end = True
        run.session.cancel()

    with interruptible(interrupt):
        _drive(run, sample, close)
    if run.wishes.end:
        raise KeyboardInterrupt
    return run.reply


def _drive(run: Run, sample: Sample, close: int | None) -> None:
    """Computes the reply. close: </think>, where a clock was able to land softly: it is taken
    behind as many thoughts, if it is the likeliest token there. Raises Cancelled."""
    session, control, steps = run.session, run.control, run.steps()
    with suppress(StopIteration):
        event = next(steps)
        while True:
            if not isinstance(event, Compute):
                event = next(steps)
                continue
            reused = computed(
                session.sync if event.prompt else session.extend, event.ids, run.wishes
            )
            ends = control.thinking and control.thinking_tokens == sample.thinking_tokens
            if close is not None and ends and session.sample() == close:
                control.accept(close)
                run.output.append(close)
                session.extend([close])
            event = steps.send(reused)


def _difference(sample: Sample, reply: Reply, tokenizer: Tokenizer) -> str | None:
    """Where the reply leaves the sample; None: nowhere."""
    then, now = sample.output, list(reply.output)
    if then != now:
        both = zip(then, now, strict=False)
        at = next((i for i, (a, b) in enumerate(both) if a != b), min(len(then), len(now)))
        was, is_ = (_piece(ids[at:], tokenizer) for ids in (then, now))
        return f"output token {at + 1} was {was} and is {is_}"
    if sample.answer_stop != reply.answer_stop:
        return f"the answer's end was {sample.answer_stop} and is {reply.answer_stop}"
    if (sample.answer, sample.answer_sha256) != (reply.answer, receipts.digest(reply.answer)):
        return "the tokens are the same, the text of the answer or its sha256 is not"
    return None


def _piece(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The beginning of a text, as it is quoted."""
    return repr(tokenizer.decode(ids[:_QUOTED])) if ids else "the end"
