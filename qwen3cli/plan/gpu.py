"""What of a model a GPU computes: the last layers, as many as its memory holds, and the output.

Of a mixture first what every token reads of the layers, then experts with what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qwen3cli import engine
from qwen3cli.errors import DoesNotFit, Qwen3Error, UsageError
from qwen3cli.plan.memory import amount, parse_bytes
from qwen3cli.plan.sizes import Sizes, device_kv, device_work

_SHARE = 0.92  # of what is free, with --vram auto: screens and other programs come and go
_RESERVE = 256 << 20  # bytes for the driver's own: code, stacks, queues, recorded graphs
_STEP = 0.85  # of a plan that did not fit
_CONTEXT = 8192  # a question, thoughts and an answer


@dataclass(frozen=True)
class Card:
    """A GPU to plan for."""

    name: str
    budget: int  # bytes of its memory that a model may take
    index: int = 0  # among the engine's devices; -1: it is not there
    backend: str = ""
    unified: bool = False  # its memory is the machine's
    layers: int | None = None  # exactly so many; None: as many as fit
    expert_bytes: int = 0  # exactly so many for their experts; 0: as many as fit

    def within(self, n_bytes: int) -> Card:
        """With a smaller budget."""
        return replace(self, budget=min(self.budget, n_bytes))


@dataclass(frozen=True)
class Share:
    """What of a model a card takes."""

    card: Card
    layers: int  # the last so many, and the output; of all of them the embedding, too
    n_ctx: int  # that its kv cache is planned for
    bytes: int  # all that it takes there, with one kv cache and working memory
    work: int  # of it, what lies nowhere else: kv cache and working memory
    expert_bytes: int = 0  # for the experts of these layers; 0: all of them


def card(gpu: str | None, vram: str | None, share: float = 1.0) -> Card | None:
    """The GPU that --gpu and --vram mean, the one with the most free memory. share: of its
    memory, where several models are open. None: none is to be used, or auto and there is none.
    Raises UsageError, and Qwen3Error for a number of layers without a GPU."""
    layers = layers_wanted(gpu)
    limit = None if vram in (None, "auto") else parse_bytes(str(vram), "--vram")
    if layers == 0:
        return None
    devices, why = _devices()
    if not devices:
        if layers is not None:
            raise Qwen3Error(f"--gpu {layers}: {why or 'there is no GPU'}; --gpu off does without")
        return None
    index = max(range(len(devices)), key=lambda i: (devices[i].free_bytes, -i))
    device = devices[index]
    return Card(
        name=device.name,
        budget=int(_budget(device.free_bytes, limit) * share),
        index=index,
        backend=device.backend,
        unified=device.unified,
        layers=layers,
    )


def card_to_fit(gpu: str | None, vram: str | None) -> Card | None:
    """As card, of a machine that may lack it: where there is no GPU with so much memory, --vram
    means one that has as much, all of it free."""
    if vram not in (None, "auto") and layers_wanted(gpu) != 0:
        total = parse_bytes(str(vram), "--vram")
        devices, _ = _devices()
        if total > max((device.total_bytes for device in devices), default=0):
            name, budget = f"a GPU of {amount(total)}", _budget(total, None)
            return Card(name, budget, index=-1, layers=layers_wanted(gpu))
    return card(gpu, vram)


def _budget(free: int, limit: int | None) -> int:
    """Of the free memory of a GPU, what a model may take; limit: None for auto."""
    room = free * _SHARE if limit is None else limit
    return max(0, int(min(room, free - _RESERVE)))


def smaller(share: Share) -> Card:
    """The card of a share for which there was too little memory after all, with less of it."""
    devices, _ = _devices()
    free = devices[share.card.index].free_bytes if share.card.index < len(devices) else 0
    return share.card.within(max(0, min(int(share.bytes * _STEP), free - _RESERVE)))


def _devices() -> tuple[list[engine.Device], str]:
    """As engine.devices; one that cannot be asked is none."""
    try:
        return engine.devices()
    except Qwen3Error as error:
        return [], str(error)


def layers_wanted(gpu: str | None) -> int | None:
    """Of --gpu: 0 for off, None for auto. Raises UsageError."""
    if gpu in (None, "auto"):
        return None
    if gpu == "off":
        return 0
    text = str(gpu)
    if text.isascii() and text.isdigit() and len(text) < 5:
        return int(text)
    raise UsageError(f"{gpu!r} is not auto, off or a number of layers")


def share_of(
    name: str, sizes: Sizes, card: Card, *, n_ctx: int | None = None, kv: str | None = None
) -> Share | None:
    """What of a model of these sizes the card takes; None: nothing. Without n_ctx the context is
    as long as it can be and cost no layer, up to the model's; 8,192 tokens may cost some.

    Raises for card.layers UsageError if the model has not as many, and DoesNotFit with what is
    needed."""
    if not sizes.layers or sizes.shape is None:
        return None
    n_layers, wanted = len(sizes.layers), card.layers
    if wanted is not None and wanted > n_layers:
        raise UsageError(f"--gpu {wanted}: {name} has {n_layers} layers; auto takes as many as fit")
    context = n_ctx or min(_CONTEXT, sizes.n_ctx)
    if wanted is None:
        fitting = (n for n in range(n_layers, 0, -1) if _share(sizes, card, n, context, kv))
        wanted = next(fitting, 0)
    found = _share(sizes, card, wanted, context, kv) if wanted else None
    if found is None:
        if wanted:
            raise _refusal(name, sizes, card, wanted, context, kv)
        return None
    while n_ctx is None and found.n_ctx < sizes.n_ctx:
        longer = _share(sizes, card, wanted, min(2 * found.n_ctx, sizes.n_ctx), kv)
        # beside experts, which gain more by it, no more than an eighth of the memory
        if longer is None or (longer.expert_bytes and 8 * longer.work > card.budget):
            break
        found = longer
    return found


def _share(sizes: Sizes, card: Card, n: int, n_ctx: int, kv: str | None) -> Share | None:
    """With the last n layers; None: they do not fit."""
    dense, least, most, work = _needs(sizes, n, n_ctx, kv)
    room = card.budget - dense - work
    experts = card.expert_bytes or min(room, most)
    if room < max(least, experts):
        return None
    return Share(card, n, n_ctx, dense + work + experts, work, experts if experts < most else 0)


def _needs(sizes: Sizes, n: int, n_ctx: int, kv: str | None) -> tuple[int, int, int, int]:
    """Bytes of the last n layers on a device: dense weights, the experts that a token meets, all
    experts, and kv cache with working memory."""
    assert sizes.shape is not None
    layers = sizes.layers[-n:]
    dense = sum(layer.dense_device for layer in layers) + sizes.output_device
    if n == len(sizes.layers):
        dense += sizes.embedding_device
    slot = max(layer.slot for layer in layers)
    work = device_kv(sizes, n, n_ctx, device_type(sizes, kv)) + device_work(sizes.shape, n_ctx)
    least = slot * min(sizes.shape.n_used * n, sizes.shape.n_experts * n)
    return dense, least, slot * sizes.shape.n_experts * n, work


def device_type(sizes: Sizes, kv: str | None) -> str:
    """The type of the kv cache on a device, where kv is wanted: it has no f32."""
    wanted = kv or sizes.kv
    return "f16" if wanted == "f32" else wanted


def _refusal(name: str, sizes: Sizes, card: Card, n: int, n_ctx: int, kv: str | None) -> DoesNotFit:
    dense, least, _, work = _needs(sizes, n, n_ctx, kv)
    most = next((i for i in range(n - 1, 0, -1) if _share(sizes, card, i, n_ctx, kv)), 0)
    return DoesNotFit(
        f"--gpu {n}: {name}: {n} layer{'s' * (n > 1)} and a context of {n_ctx:,} tokens (--ctx) "
        f"take {amount(dense + least + work, math.ceil)} on {card.name}, of which "
        f"{amount(card.budget, math.floor)} may be taken (--vram); {most or 'none'} "
        f"fit{'s' if most == 1 else ''}"
    )
