"""llama.cpp as the peer of `qwen3 bench`, in a process of its own: where it crashes, as its
repacking does on some machines, the benchmark goes on without it.

The child is this file run as a program. It reads a line of JSON for every piece of work and
answers with a line: {"seconds": s} or {"error": text}.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from qwen3cli.errors import Qwen3Error

BATCH = 2048  # most tokens of one call


class PeerFailed(Qwen3Error):
    """The peer cannot do this work, or has crashed."""


def require() -> None:
    """Raises Qwen3Error where llama-cpp-python is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise Qwen3Error(
            "--against llama.cpp needs llama-cpp-python: `pip install 'qwen3[llama]'`, "
            "or `pip install llama-cpp-python`"
        )


class Peer:
    """llama.cpp with a model open. repack: weights are copied into another layout."""

    def __init__(self, path: Path, *, threads: int, n_ctx: int, repack: bool) -> None:
        """Raises PeerFailed when it cannot open the model."""
        arguments = [str(path), str(threads), str(n_ctx), str(int(repack))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qwen3cli.bench.peer", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.version = str(self._answer()["version"])
        except BaseException:
            self.close()
            raise

    def prefill(self, n: int) -> float:
        """Seconds for n tokens in an empty context."""
        return self._ask({"work": "prefill", "n": n})

    def decode(self, n: int, depth: int) -> float:
        """Seconds for n tokens one by one, behind depth tokens that are there already."""
        return self._ask({"work": "decode", "n": n, "depth": depth})

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, work: dict[str, object]) -> float:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(work) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: the answer says how
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise PeerFailed(f"crashed ({how})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(str(answer["error"]))
        return answer


# ---- the child ---------------------------------------------------------------------


class _Llama:
    """The C interface, without the copies that llama-cpp-python makes of every logit."""

    def __init__(self, path: str, threads: int, n_ctx: int, repack: bool) -> None:
        package = importlib.import_module("llama_cpp")
        api: Any = importlib.import_module("llama_cpp.llama_cpp")  # the ctypes binding
        self._api = api
        self.version = str(package.__version__)
        api.llama_backend_init()
        how = api.llama_model_default_params()
        how.n_gpu_layers = 0
        if not hasattr(how, "use_extra_bufts"):
            raise RuntimeError(f"llama-cpp-python {self.version} is too old: update it")
        how.use_extra_bufts = repack
        model = api.llama_model_load_from_file(os.fsencode(path), how)
        if not model:
            raise RuntimeError("it cannot load the model")
        self._n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        context = api.llama_context_default_params()
        context.n_ctx = n_ctx
        context.n_batch = BATCH
        context.n_threads = context.n_threads_batch = threads
        context.offload_kqv = context.op_offload = False
        self._context = api.llama_init_from_model(model, context)
        if not self._context:
            raise RuntimeError(f"it cannot make a context of {n_ctx} tokens")
        self._memory = api.llama_get_memory(self._context)
        self._len = 0

    def prefill(self, n: int) -> float:
        return self._append(n, BATCH, behind=0)

    def decode(self, n: int, depth: int) -> float:
        self._append(max(depth - self._len, 0), BATCH, behind=min(depth, self._len))
        return self._append(n, 1, behind=depth)

    def _append(self, n: int, batch: int, behind: int) -> float:
        """Computes n tokens behind the first ones, batch by batch; the seconds it took."""
        api = self._api
        api.llama_memory_seq_rm(self._memory, 0, behind, -1)
        self._len = behind + n
        ids = [i * 7919 % self._n_vocab for i in range(behind, behind + n)]
        start = perf_counter()
        for i in range(0, n, batch):
            part = ids[i : i + batch]
            tokens = (api.llama_token * len(part))(*part)
            if api.llama_decode(self._context, api.llama_batch_get_one(tokens, len(part))):
                raise RuntimeError(f"it cannot compute {len(part)} tokens behind {behind + i}")
            api.llama_synchronize(self._context)
        return perf_counter() - start


def main(path: str, threads: str, n_ctx: str, repack: str) -> None:
    """Serves until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints is no answer

    def answer(value: dict[str, object]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        llama = _Llama(path, int(threads), int(n_ctx), repack == "1")
        answer({"version": llama.version})
        for line in sys.stdin:
            asked = json.loads(line)
            if asked["work"] == "prefill":
                answer({"seconds": llama.prefill(asked["n"])})
            else:
                answer({"seconds": llama.decode(asked["n"], asked["depth"])})
    except Exception as error:
        answer({"error": str(error)})


if __name__ == "__main__":
    main(*sys.argv[1:])
