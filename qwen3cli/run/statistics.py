"""What a reply took and why its parts ended: as a line for people, and as JSON."""

from __future__ import annotations

from dataclasses import asdict

from qwen3cli.engine import Model, Session
from qwen3cli.plan.memory import amount, part
from qwen3cli.session import Closed, Reply, Settings

_NEARLY_FULL = 0.9  # of the context


def statistics(reply: Reply, session: Session) -> str:
    """One line: what the reply took, why its parts ended, a context that is nearly full or longer
    than what the model was made for, and what became of the experts, all in all, if not all of
    them are in memory."""
    thinking = "thinking off"
    if reply.thinking_stop != "off":
        budget = "" if reply.budget is None else f"/{reply.budget}"
        unit = _unit(reply.thinking_tokens if reply.budget is None else reply.budget)
        thinking = f"thinking {reply.thinking_tokens}{budget} {unit} ({reply.thinking_stop})"
        if reply.seconds is not None:
            thinking += f" in {reply.thinking_s:.1f} of {reply.seconds:g} s"
    answer = f"answer {reply.answer_tokens} {_unit(reply.answer_tokens)} ({reply.answer_stop})"
    speed = f"{reply.decode_tok_s:.{0 if reply.decode_tok_s >= 10 else 2}f} tok/s"
    line = f"{thinking}, {answer}, {speed}, seed {reply.seed}"
    used = reply.prompt_tokens + len(reply.output)
    if used >= _NEARLY_FULL * session.n_ctx:
        line += (
            f", {used:,} of {session.n_ctx:,} tokens of context: {used / session.n_ctx:.0%} full"
        )
    if used > (made_for := session.model.config["n_ctx_train"]):
        line += f", {used:,} tokens of context where the model was made for {made_for:,}"
    if (stats := session.model.expert_stats).budget_bytes:
        line += f", {stats.hit_rate:.1%} of experts in memory, {amount(stats.bytes_read)} read, "
        line += f"{stats.stall_s:.1f} s waited"
    if share := _on_gpu(session.model):
        line += f", {share}"
    return line


def _on_gpu(model: Model) -> str:
    """What of a model a GPU has, if that is not all."""
    stats, n_layers = model.gpu_stats, model.config["n_layers"]
    parts = []
    if 0 < stats.n_layers < n_layers:
        parts.append(f"{stats.n_layers} of {n_layers} layers on the GPU")
    if stats.misses:
        parts.append(f"{stats.hit_rate:.1%} of experts there, {stats.stall_s:.1f} s waited")
    return ", ".join(parts)


def _unit(n: int) -> str:
    return "token" if n == 1 else "tokens"


def thought_for(closed: Closed) -> str:
    """What folded thoughts leave on the screen."""
    of = "" if closed.limit is None else f" of {closed.limit:,}"
    unit = _unit(closed.tokens if closed.limit is None else closed.limit)
    return f"thought for {closed.tokens:,}{of} {unit}, {closed.seconds:.0f} s ({closed.stop})"


def experts(model: Model) -> str | None:
    """What became of the experts of a model that are not all in memory, place by place."""
    stats = model.expert_stats
    if not stats.budget_bytes:
        return None
    return (
        f"experts: {part(stats.used_bytes, stats.budget_bytes)} of memory in use; "
        f"{stats.hits:,} were in memory, {stats.misses:,} came from the file, "
        f"{stats.right_guesses:,} of them ahead by {stats.guesses:,} guesses "
        f"({amount(stats.bytes_read)} read, {stats.stall_s:.1f} s waited)"
    )


def gpu(model: Model) -> str | None:
    """What a GPU has of a model, and what became of the experts that it wanted."""
    stats, device = model.gpu_stats, model.device
    if device is None:
        return None
    line = f"gpu: {stats.n_layers} of {model.config['n_layers']} layers on {device.name}, "
    line += f"{amount(stats.bytes)} of weights"
    if stats.misses:
        line += (
            f", {amount(stats.expert_bytes)} of them experts; {stats.hits:,} were there, "
            f"{stats.copied:,} were copied ({amount(stats.bytes_copied)}), "
            f"{stats.computed:,} computed by the CPU ({stats.stall_s:.1f} s waited)"
        )
    return line


def described(reply: Reply, settings: Settings, model: Model) -> dict[str, object]:
    """The reply as --json prints it."""
    sampling = asdict(reply.sampling)
    del sampling["seed"]
    return (
        {
            "model": str(model.path),
            "prompt_tokens": reply.prompt_tokens,
            "reused_tokens": reply.reused_tokens,
            "thoughts": reply.thoughts,
            "answer": reply.answer,
            "thinking_tokens": reply.thinking_tokens,
            "budget": reply.budget,
            "seconds": reply.seconds,
            "landing": settings.landing,
            "thinking_stop": reply.thinking_stop,
            "inserted_tokens": reply.inserted_tokens,
            "thinking_s": round(reply.thinking_s, 3),
            "answer_tokens": reply.answer_tokens,
            "answer_stop": reply.answer_stop,
            "dropped": reply.dropped,
            "seed": reply.seed,
            "sampling": sampling,
            "prefill_tok_s": round(reply.prefill_tok_s, 1),
            "decode_tok_s": round(reply.decode_tok_s, 2),
        }
        | _experts(model)
        | on_gpu(model)
    )


def on_gpu(model: Model) -> dict[str, object]:
    """What --json tells of a GPU; nothing where none is used."""
    device, stats = model.device, model.gpu_stats
    if device is None:
        return {}
    told: dict[str, object] = {
        "name": device.name,
        "backend": device.backend,
        "layers": stats.n_layers,
        "weight_bytes": stats.bytes,
    }
    if stats.hits or stats.misses:
        told["experts"] = {
            "budget_bytes": stats.expert_bytes,
            "slots": stats.n_slots,
            "hit_rate": round(stats.hit_rate, 4),
            "hits": stats.hits,
            "misses": stats.misses,
            "copied": stats.copied,
            "computed": stats.computed,
            "bytes_copied": stats.bytes_copied,
            "stall_s": round(stats.stall_s, 3),
        }
    return {"gpu": told}


def _experts(model: Model) -> dict[str, object]:
    """Nothing for a model that is in memory as a whole."""
    stats = model.expert_stats
    if not stats.budget_bytes:
        return {}
    return {
        "experts": {
            "budget_bytes": stats.budget_bytes,
            "hit_rate": round(stats.hit_rate, 4),
            "bytes_read": stats.bytes_read,
            "stall_s": round(stats.stall_s, 3),
            "used_bytes": stats.used_bytes,
            "hits": stats.hits,
            "misses": stats.misses,
            "guesses": stats.guesses,
            "right_guesses": stats.right_guesses,
        }
    }
