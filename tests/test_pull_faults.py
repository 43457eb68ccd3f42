"""qwen3 pull on a bad line, from bad servers, beside others, and ended at any moment: nothing
wrong becomes a model, and nothing that came is lost."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest
from commandline import Command, environment
from hub_server import (
    Fault,
    LoopbackHub,
    cut,
    flipped,
    longer,
    notified,
    redirect,
    shifted,
    slow,
    stalled,
    status,
    unranged,
)
from huggingface_hub import constants
from pulling import GGUF, MODEL, NAME, TOKEN, Pull, cache, child, everything, models, part

from qwen3cli.errors import Qwen3Error
from qwen3cli.hub import registry
from qwen3cli.hub.remote import Hub

# ---- a bad line -------------------------------------------------------------


def test_cut_at_random_points(hub: LoopbackHub, pull: Pull, pauses: Any) -> None:
    rng = random.Random(100)
    hub.plan("content", *(cut(rng.randrange(1, 2 * len(MODEL) // 100)) for _ in range(100)))
    told = json.loads(pull("0.6b", "--json").out)
    assert Path(told["path"]).read_bytes() == MODEL
    ranges = [seen.headers.get("Range") for seen in hub.received("cdn")]
    assert ranges[0] is None and None not in ranges[1:]
    assert not hub.faults["content"] or len(ranges) > 60
    assert told["received_bytes"] == len(MODEL)  # nothing came twice


def test_a_next_pull_goes_on(hub: LoopbackHub, pull: Pull, pauses: Any) -> None:
    hub.plan("content", cut(123_456))
    hub.always["content"] = cut(0)
    failed = pull("0.6b")
    assert failed.code == 1
    assert "try again later; the same command goes on where this one ended" in failed.err
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert models() == [] and part().read_bytes() == MODEL[:123_456]
    hub.always.clear()
    told = json.loads(pull("0.6b", "--json").out)
    assert told["received_bytes"] == len(MODEL) - 123_456
    assert hub.received("cdn")[-1].headers["Range"] == "bytes=123456-"


@pytest.mark.parametrize("left", [MODEL[:1000] + b"x", b"x" * len(MODEL), MODEL + b"x", MODEL])
def test_a_beginning_of_somebody_else(hub: LoopbackHub, pull: Pull, left: bytes) -> None:
    part().parent.mkdir(parents=True)
    part().write_bytes(left)
    assert pull("0.6b").code == 0
    assert registry.resolve("0.6b").read_bytes() == MODEL
    assert not part().exists()


def test_a_wrong_blob_of_another_tool(hub: LoopbackHub, pull: Pull) -> None:
    part().parent.mkdir(parents=True)
    part().with_suffix("").write_bytes(b"x" * len(MODEL))
    assert pull("0.6b").code == 0
    assert registry.resolve("0.6b").read_bytes() == MODEL


# ---- a bad server -----------------------------------------------------------

SURVIVED: dict[str, list[Fault | None]] = {
    "200 for 206": [cut(100_000), unranged],
    "a wrong range": [cut(100_000), shifted(1), None],
    "an end without a length": [cut(100_000), longer],
    "more than there is": [longer, None],
    "too many requests": [status(429, Retry_After="7")],
    "not now": [status(503), status(502), status(500), status(408)],
    "an expired address": [status(403)],
    "an empty answer": [cut(0)],
    "compressed": [lambda handler, data: handler.content(data, headers={"Content-Encoding": "br"})],
    "slow": [slow(50_000, 0.01)],
}


@pytest.mark.parametrize("faults", SURVIVED.values(), ids=SURVIVED.keys())
def test_survived(hub: LoopbackHub, pull: Pull, pauses: Any, faults: list[Fault | None]) -> None:
    hub.plan("content", *faults)
    assert pull("0.6b").code == 0
    assert registry.resolve("0.6b").read_bytes() == MODEL
    assert not part().exists()


def test_a_wrong_bit_is_no_model(hub: LoopbackHub, pull: Pull) -> None:
    hub.plan("content", flipped)
    done = pull("0.6b")
    assert done.code == 7
    assert f"{NAME}: what {hub.url} sent has another checksum than it lists" in done.err
    assert everything(cache()) == []


def test_a_wrong_bit_of_a_small_file(hub: LoopbackHub, pull: Pull) -> None:
    hub.plan("content", flipped)
    done = pull("0.6b", "--weights")
    assert done.code == 7 and "config.json: what" in done.err
    assert models() == []


def test_never_right(hub: LoopbackHub, pull: Pull, pauses: Any) -> None:
    """Also after a fresh start; and without an end no pull goes on."""
    hub.plan("content", cut(1000))
    hub.always["content"] = flipped
    assert pull("0.6b").code == 7
    hub.always["content"] = cut(1000)
    hub.plan("content", *[cut(1000), unranged] * 3)
    hub.always["content"] = lambda handler, data: handler.content(data, ranges=False, stop=900)
    done = pull("0.6b")
    assert done.code == 1 and "(tried 10 times)" in done.err
    assert models() == []


def test_wait_as_asked(hub: LoopbackHub, pull: Pull, pauses: Any) -> None:
    hub.plan("api", status(429, Retry_After="11"), status(503))
    hub.plan("resolve", status(429, Retry_After=formatdate(time.time() + 200, usegmt=True)))
    done = pull("0.6b")
    assert done.code == 0
    assert pauses[:2] == [11, 1] and 100 < pauses[2] <= 200
    assert "answers 429 Too Many Requests; trying again in 11 s" in done.err
    shutil.rmtree(cache())
    hub.plan("api", status(429, Retry_After="3600"))
    done = pull("0.6b")
    assert done.code == 1 and "try again in 3,600 s, as it asks" in done.err


def test_a_server_that_says_nothing(
    hub: LoopbackHub, pull: Pull, pauses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    over = Event()
    hub.plan("content", stalled(200_000, over))
    assert pull("0.6b").code == 0
    over.set()
    assert hub.received("cdn")[-1].headers["Range"] == "bytes=200000-"


def test_circles_of_redirects(hub: LoopbackHub, pull: Pull) -> None:
    hub.always["resolve"] = redirect(f"{hub.url}/{GGUF}/resolve/{'1' * 40}/{NAME}")
    done = pull("0.6b")
    assert done.code == 1 and "more than 5 redirects" in done.err
    assert len([seen for seen in hub.seen if "/resolve/" in seen.path]) == 6


def test_a_redirect_to_a_name_that_is_none(hub: LoopbackHub, pull: Pull, pauses: Any) -> None:
    hub.plan("resolve", redirect(f"https://{'x' * 70}.test/x"))
    assert pull("0.6b").code == 0 and pauses == [0.5]


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x"])
def test_redirects_to_no_hub(hub: LoopbackHub, pull: Pull, to: str) -> None:
    hub.plan("resolve", redirect(to))
    done = pull("0.6b")
    assert done.code == 1 and "redirects" in done.err
    assert models() == []


def answering(hub: Hub, *answers: httpx2.Response) -> list[httpx2.Request]:
    """Replaces the network; what is asked."""
    asked: list[httpx2.Request] = []
    left = list(answers)

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return left.pop(0)

    transport = httpx2.MockTransport(answer)
    hub._client = httpx2.Client(transport=transport, headers=hub._client.headers)
    return asked


def test_no_way_from_https_to_http(monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.test")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for way in (["http://hub.test/x"], ["https://cdn.test/", "http://cdn.test/"]):
        with Hub(print) as source:
            asked = answering(source, *(httpx2.Response(302, headers={"Location": u}) for u in way))
            with pytest.raises(Qwen3Error, match="from https:// to http://; refused"):
                source.listing(GGUF, "main")
        assert [request.url.scheme for request in asked] == ["https"] * len(way)
        assert [request.headers.get("Authorization") for request in asked][1:] == [None] * (
            len(way) - 1
        )


def test_no_token_over_plain_http(monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for url, sent in (("http://hub.test", None), ("https://hub.test", f"Bearer {TOKEN}")):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with Hub(print) as source:
            body = json.dumps({"sha": "1" * 40, "siblings": []}).encode()
            asked = answering(source, httpx2.Response(200, stream=httpx2.ByteStream(body)))
            source.listing(GGUF, "main")
        assert asked[0].headers.get("Authorization") == sent


@pytest.mark.parametrize("code", ["GatedRepo", "RepoNotFound", ""])
def test_a_refusal_says_why_no_token_was_sent(
    monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub, code: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    plain = "set HF_ENDPOINT to an https address: no token is sent by plain http"
    sent = r"set HF_TOKEN to a token that may read it \(https://hub.test/settings/tokens\)"
    for url, text in (("http://hub.test", plain), ("https://hub.test", sent)):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with Hub(print) as source:
            answering(source, httpx2.Response(401, headers={"X-Error-Code": code}))
            with pytest.raises(Qwen3Error, match=text):
                source.listing(GGUF, "main")


def test_a_disk_that_fills_up(hub: LoopbackHub, tmp_path: Path) -> None:
    """A limit for files stands for it: its error comes from write in the same way."""
    script = (
        "import errno, resource, signal, sys\n"
        "from qwen3cli.cli import commands\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "errno.EDQUOT = errno.EFBIG\n"
        "sys.argv = ['qwen3', 'pull', '0.6b']\n"
        "sys.exit(commands.main())\n"
    )
    command = Command(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(command.home, HF_ENDPOINT=hub.url),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "the disk is full; free some space; the same command goes on" in done.stderr
    home = tmp_path / "huggingface" / "hub"
    assert not any("/snapshots/" in name for name in everything(home))
    (left,) = home.rglob("*.incomplete")
    assert left.read_bytes() == MODEL[: left.stat().st_size] and left.stat().st_size > 90_000
    assert command("pull", "0.6b", HF_ENDPOINT=hub.url).returncode == 0


# ---- several, and the end at any moment -------------------------------------


def start(hub: LoopbackHub, forks: Any) -> Any:
    process = forks.Process(target=child, args=(hub.url, constants.HF_HUB_CACHE))
    process.start()
    return process


def test_killed_at_random_moments(hub: LoopbackHub, forks: Any, pull: Pull) -> None:
    """What is left is a beginning of the file or the whole model, and the next pull uses it."""
    start(hub, forks).join()  # waits for the others' imports
    rng = random.Random(50)
    for moment in ["content", "end", "any"] * 17:
        shutil.rmtree(cache())
        cache().mkdir()
        over, sent = Event(), Event()
        if moment == "content":  # it holds a beginning, and nothing more comes
            hub.always["content"] = stalled(rng.randrange(20_000, 280_000), over)
            process = start(hub, forks)
            while not (part().exists() and part().stat().st_size):
                assert process.is_alive()
                time.sleep(0.001)
        elif moment == "end":  # it has got all, and goes on with that
            hub.always["content"] = notified(sent)
            process = start(hub, forks)
            assert sent.wait(60)
            process.join(rng.uniform(0, 0.02))
        else:
            hub.always["content"] = slow(10_000, 0.002)
            process = start(hub, forks)
            process.join(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        over.set()
        if models():
            assert registry.resolve("0.6b").read_bytes() == MODEL
        left = part().read_bytes() if part().exists() else b""
        assert MODEL.startswith(left)
        if moment == "content":
            assert process.exitcode == -signal.SIGKILL and 0 < len(left) < len(MODEL)
        hub.always.clear()
        told = json.loads(pull("0.6b", "--json").out)
        assert Path(told["path"]).read_bytes() == MODEL
        assert told["received_bytes"] in (len(MODEL) - len(left), 0)
        assert not part().exists()


def test_two_at_once(hub: LoopbackHub, forks: Any) -> None:
    for _ in range(20):
        shutil.rmtree(cache(), ignore_errors=True)
        hub.seen.clear()
        hub.always["content"] = slow(50_000, 0.002)
        both = [start(hub, forks), start(hub, forks)]
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0]
        assert registry.resolve("0.6b").read_bytes() == MODEL
        assert len(everything(cache())) == 3 and len(hub.received("cdn")) == 1


def test_ctrl_c(hub: LoopbackHub, tmp_path: Path) -> None:
    over = Event()
    hub.plan("content", stalled(100_000, over))
    process = Command(tmp_path).start("pull", "0.6b", HF_ENDPOINT=hub.url)
    while not any(file.stat().st_size for file in tmp_path.rglob("*.incomplete")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    over.set()
    assert (process.returncode, out) == (130, b"")
    assert err == b"interrupted; the same command goes on where this one ended\n"
    assert not list(tmp_path.rglob("snapshots"))
    assert Command(tmp_path)("pull", "0.6b", HF_ENDPOINT=hub.url).returncode == 0
    assert "Range" in hub.received("cdn")[-1].headers
