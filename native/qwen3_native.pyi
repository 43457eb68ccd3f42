"""The native engine (bind.cpp). Only qwen3cli.engine and quant import it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class NativeError(Exception):
    """args: (status, text); status is arg, io, format, unsupported, memory, context or
    cancelled."""

class File:
    """A GGUF file, or all shards of a split model by the path of the first: metadata and
    tensor table, nothing computed."""

    def __init__(self, path: bytes) -> None: ...
    version: int
    def metadata(self, max_items: int = -1) -> dict[str, Any]:
        """Values by key; an array longer than max_items (>= 0) comes as
        ("array", item_type, count)."""
    def value_types(self) -> dict[str, tuple[int, int]]:
        """Of each key GGUF's numbers of its value's type and, of an array, its items'."""
    def data_offsets(self) -> dict[str, int]:
        """Where in the file the data of each tensor begins."""
    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]: ...
    def find_row_not_finite(self, name: str, start: int, stop: int) -> int | None:
        """The first of the rows that holds a NaN or an infinity."""
    def tensors(self) -> list[tuple[str, tuple[int, ...], str, int]]:
        """(name, shape with the fastest dimension last, type, bytes) in file order."""
    def shards(self) -> list[int]:
        """For each tensor the file that holds it: 0, or more in a split model."""

class Tokenizer:
    def __init__(self, path: bytes) -> None: ...
    n_tokens: int
    def encode(self, text: bytes, parse_added: bool = False) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...
    def added(self) -> dict[str, int]:
        """The added tokens by text."""
    def join(self, tokens: Sequence[int], skip_control: bool = False) -> bytes:
        """The bytes of the tokens, one after the other."""

class Trie:
    def __init__(self, tokenizer: Tokenizer) -> None: ...

class Grammar:
    def __init__(
        self, trie: Trie, code: bytes, sets: bytes, start: int, end: Sequence[int]
    ) -> None:
        """code: int32[n, 5], sets: uint8[n, 32], as grammar.h has them."""

class Matcher:
    complete: bool
    finished: bool
    def __init__(self, grammar: Grammar) -> None: ...
    def accept(self, token: int) -> None: ...
    def mask(self) -> NDArray[np.bool_]: ...

class Model:
    def __init__(self, path: bytes, threads: int = 0, expert_bytes: int = 0) -> None: ...
    config: dict[str, Any]
    expert_stats: dict[str, Any]
    """budget_bytes, used_bytes, hits, misses, guesses, right_guesses, bytes_read, stall_s,
    direct"""
    def guess(self, on: bool | None) -> None: ...
    def approximate(self, prefer: float, drop: float) -> None: ...
    def use_gpu(self, device: int, layers: int, expert_bytes: int) -> None: ...
    gpu_stats: dict[str, Any]
    """n_layers, bytes, expert_bytes, n_slots, hits, misses, copied, computed, bytes_copied,
    stall_s"""
    threads: int
    isa: str
    def tokenizer(self) -> Tokenizer: ...
    def metadata(self, max_items: int = -1) -> dict[str, Any]: ...
    def session(self, n_ctx: int, kv: str) -> Session: ...

class Session:
    n_ctx: int
    kv_bytes: int
    def __len__(self) -> int: ...
    def ids(self) -> list[int]: ...
    def sync(self, ids: Sequence[int]) -> int: ...
    def extend(self, ids: Sequence[int]) -> None: ...
    def observe(self, importance: Importance | None) -> None: ...
    def extend_logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """[len(ids), n_vocab]"""
    def fill(self, n: int) -> None: ...
    def force_routes(
        self, routes: NDArray[np.int32], guesses: NDArray[np.int32] | None = None
    ) -> None:
        """[tokens, layers, experts used]: the token at position p takes routes[p % tokens]."""
    def snapshot(self, start: int) -> Snapshot: ...
    def restore(self, snapshot: Snapshot) -> None: ...
    def save(self, path: bytes) -> None: ...
    def load(self, path: bytes) -> None: ...
    def logits(self) -> NDArray[np.float32]: ...
    def sample(
        self,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        presence_penalty: float,
        repetition_penalty: float,
        seed: int,
        generated_from: int,
        matcher: Matcher | None = None,
    ) -> int: ...
    def cancel(self) -> None: ...

class Snapshot:
    """To be dropped before the model."""

    start: int
    n_bytes: int
    def __len__(self) -> int:
        """Tokens, those before start included."""
    def ids(self) -> list[int]: ...

TOGETHER: int

def extend_together(sessions: Sequence[Session], tokens: Sequence[int]) -> None:
    """A token for each of at most TOGETHER sessions; releases the GIL."""

class Importance:
    def __init__(self, model: Model) -> None: ...
    def __len__(self) -> int: ...
    def inputs(self, index: int) -> tuple[str, NDArray[np.float64], NDArray[np.int64]]:
        """(tensor, sums [n_experts, n_in], counts [n_experts]): copies."""

class Probe:
    def __init__(self, model: Model, bytes: int) -> None: ...
    def read(self) -> float:
        """Bytes a second."""
    def int8(self) -> float:
        """Products a second."""
    def f32(self) -> float: ...

def quantize(
    type: str, rows: NDArray[np.float32], weights: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Rows [n_rows, n_per_row] as [n_rows, bytes_per_row] blocks; releases the GIL."""

def dequantize(type: str, data: NDArray[np.uint8], n: int) -> NDArray[np.float32]: ...
def type_bytes(type: str, n: int) -> int:
    """0 when n is not a whole number of blocks; ValueError for an unknown type."""

def isas() -> list[str]:
    """The backends that can run on this machine."""

def devices() -> tuple[list[dict[str, Any]], str]:
    """Of each GPU backend, name, total_bytes, free_bytes, n_units and unified; and why there is
    none, "" otherwise."""

def probe_device(index: int) -> dict[str, float]:
    """read, upload and download in bytes a second, f16 and int8 in products a second."""
