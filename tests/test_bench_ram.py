"""`qwen3 bench --ram`: its report, its chart, the routes it forces. No test judges a speed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from commandline import Command

from qwen3cli.bench.chart import Series, line_chart
from qwen3cli.bench.ram import WARM_UP, Pass, Request
from qwen3cli.bench.routes import routes_of
from qwen3cli.bench.speed import Plan
from qwen3cli.engine import Model
from qwen3cli.errors import UsageError
from qwen3cli.hub.registry import resolve
from qwen3cli.plan.placement import sizes_of

NANO_MOE = resolve("nano-moe")
BENCH = ("bench", "-m", "nano-moe", "--threads", "2", "--prefill", "24", "--decode", "8")
N_CTX = WARM_UP + 8 + 24 + 8
CONFIG = {"n_experts": 16, "n_experts_used": 4, "n_layers": 2}
SVG = "{http://www.w3.org/2000/svg}"


def memory(share: float) -> str:
    """--ram for that share of nano-moe's experts."""
    sizes = sizes_of(NANO_MOE)
    assert sizes is not None
    always = 300_000_000 + sizes.dense + sizes.kv_bytes(N_CTX)
    return f"{(always + share * sizes.experts) // 1000:.0f}K"


# ---- the report --------------------------------------------------------------------


def test_each_memory_has_its_figures_and_the_chart_shows_them(qwen3: Command) -> None:
    rams = [memory(0.4), memory(0.8), "1G"]
    plot = ("--plot", "curve.svg", "--routes", "uniform")
    done = qwen3(*BENCH, "--ram", ",".join(rams), *plot, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    rows = report["by_ram"]
    assert [row["ram_bytes"] for row in rows] == [int(ram[:-1]) * 1000 for ram in rams[:2]] + [
        10**9
    ]
    for row in rows:
        experts, decode, prefill = row["experts"], row["decode"], row["prefill"]
        assert set(experts) == {
            "budget_bytes", "hit_rate", "bytes_read", "stall_s", "predicted_tok_s",
        }  # fmt: skip
        assert decode["tok_s"] > 0 and prefill["tok_s"] > 0 and experts["predicted_tok_s"] > 0
        assert decode["tokens"] == 8 and prefill["tokens"] == 24
        assert 0 < decode["floor_tok_s"] <= decode["limit_tok_s"]
        assert decode["fraction"] == pytest.approx(
            decode["tok_s"] / decode["limit_tok_s"], rel=1e-3
        )
        mb = decode["disk_mb_per_token"]
        assert mb == pytest.approx(experts["bytes_read"] / 8 / 1e6, rel=1e-3)
        to_disk = mb / 1e3 / decode["disk_gb_s"]  # 1 / floor = T_memory + T_disk
        assert 1 / decode["floor_tok_s"] > to_disk
    assert report["experts"] == rows[0]["experts"] and report["decode"] == rows[0]["decode"]
    small, large, whole = (row["experts"] for row in rows)
    assert small["hit_rate"] < large["hit_rate"] < whole["hit_rate"] == 1
    assert small["bytes_read"] > large["bytes_read"] > whole["bytes_read"] == 0
    assert small["budget_bytes"] < large["budget_bytes"] < whole["budget_bytes"]
    assert whole["stall_s"] == 0 and rows[2]["prefill"]["hit_rate_behind"] == 1

    chart = ElementTree.parse(qwen3.home / "curve.svg").getroot()
    texts = [text.text for text in chart.iter(f"{SVG}text")]
    for text in ("measured", "predicted", "serial floor", "overlapped limit", "memory (GB)",
                 "decode (tok/s)"):  # fmt: skip
        assert texts.count(text) == 1, text
    lines = list(chart.iter(f"{SVG}g"))
    assert [len(list(line.iter(f"{SVG}circle"))) for line in lines] == [3] * 4


def test_the_report_is_three_tables_on_stdout(qwen3: Command) -> None:
    terminal = qwen3.terminal(*BENCH, "--ram", memory(0.5))
    assert terminal.finish() == 0
    for text in ("disk", "GB/s", "held", "waits", "tok/s", "predicted", "floor", "limit", "behind"):
        assert text in terminal.screen
    lines = qwen3(*BENCH, "--ram", memory(0.5), "--rounds", "2").stdout.splitlines()
    *_, decode, prefill = (line.split("\t") for line in lines)
    assert len(decode) == 9 and len(prefill) == 4 and decode[0] == prefill[0]


def test_what_the_command_line_asks_wrongly(qwen3: Command) -> None:
    (qwen3.home / "bad.csv").write_text("step,layer,slot,expert\n0,0,0,5\n0,0,1,x\n")
    moe, ram = ("-m", "nano-moe"), ("--ram", "1G")
    for arguments, named in [
        (("-m", "nano", *ram), "no experts"),
        ((*moe, *ram, "--against", "llama.cpp"), "--against"),
        ((*moe, *ram, "--routes", "bad.csv"), "bad.csv line 3"),
        ((*moe, "--plot", "curve.svg"), "--ram"),
    ]:
        done = qwen3("bench", *arguments)
        assert (done.returncode, done.stdout) == (2, "") and named in done.stderr, arguments
    refused = qwen3("bench", *moe, "--ram", "1G,50M")
    assert refused.returncode == 4 and "are needed" in refused.stderr


@pytest.mark.parametrize(
    ("rams", "prefill", "depth", "plot", "named"),
    [
        ("8X", "8", "0", None, "8X"),
        ("8G,,9G", "8", "0", None, "--ram"),
        ("auto", "8", "0", None, "auto"),
        ("8G", "8", "0,100", None, "--depth"),
        ("8G", "8", "100", None, "--depth"),
        ("8G", "5,6", "0", None, "--prefill"),
        ("8G", "8", "0", "curve.png", r"\.svg"),
        ("8G", "8", "0", "no/curve.svg", "no such folder"),
    ],
)
def test_requests_that_cannot_be_met(
    rams: str, prefill: str, depth: str, plot: str | None, named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        Request.parse(rams, Plan.parse(prefill, 4, depth, 1), None, Path(plot) if plot else None)


def test_routes_are_a_name_or_a_file() -> None:
    with pytest.raises(UsageError, match="unifrom: neither own nor uniform, nor"):
        routes_of("unifrom", CONFIG, 8)


def test_ctrl_c_ends_it(qwen3: Command) -> None:
    terminal = qwen3.terminal(*BENCH, "--ram", memory(0.5), "--rounds", "1000")
    terminal.wait_for("nano-moe")  # the bar
    terminal.press("c")
    assert terminal.finish() == 130
    assert "internal error" not in terminal.text


def test_without_a_store_all_experts_are_in_memory() -> None:
    assert Pass(4, 2.0, 0, 0, 0, 0.0).hit_rate == 1 and Pass(4, 2.0, 0, 0, 0, 0.0).tok_s == 2
    assert Pass(4, 2.0, 3, 1, 9, 0.5).hit_rate == 0.75


def test_the_context_has_room_for_all_that_is_computed() -> None:
    request = Request.parse("8G,6G,8G", Plan.parse("100", 50, "0", 1), None, None)
    assert request.rams == ("8G", "6G") and request.routes == "own"
    assert request.n_ctx == WARM_UP + 50 + 100 + 16


# ---- routes ---------------------------------------------------------------------------


def recorded(path: Path, *lines: str) -> Path:
    text = "\n".join(["step,layer,slot,expert,weight", *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_uniform_routes_reach_every_expert_alike() -> None:
    routes = routes_of("uniform", CONFIG, 400)
    assert routes is not None and routes.shape == (400, 2, 4) and routes.dtype == np.int32
    assert all(len(set(chosen)) == 4 for chosen in routes.reshape(-1, 4).tolist())
    counts = np.bincount(routes.ravel(), minlength=16)
    assert len(counts) == 16 and counts.min() > 150 and counts.max() < 250
    assert routes_of("own", CONFIG, 400) is None


@pytest.mark.parametrize("name", ["run.csv", "run.csv.gz"])
def test_recorded_routes_are_followed_and_filled_up(tmp_path: Path, name: str) -> None:
    file = recorded(
        tmp_path / name,
        "3,0,0,7,0.5", "3,0,1,2,0.5", "3,1,1,4,0.1", "3,1,0,15,0.9",
        "4,0,0,1,1",  # its second layer is missing: left out
        "2,0,0,0,1", "2,1,0,9,1", "2,1,1,8,1", "2,1,2,7,1", "2,1,3,6,1", "2,1,4,5,1",
    )  # fmt: skip
    routes = routes_of(str(file), CONFIG, 400)
    assert routes is not None and routes.shape == (2, 2, 4)
    assert routes[0, 0, 0] == 0 and routes[0, 1].tolist() == [9, 8, 7, 6]
    assert routes[1, 0, :2].tolist() == [7, 2] and routes[1, 1, :2].tolist() == [15, 4]
    assert all(len(set(chosen)) == 4 for chosen in routes.reshape(-1, 4).tolist())


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["0,0,0,16,1"], "line 2: expert 16, the model has 16"),
        (["0,0,0,1,1", "0,2,0,1,1"], "line 3: layer 2, the model has 2"),
        (["0,0,0,1,1", "0,0,1,1,1"], "line 3: step 0 has slot 1 or expert 1 of layer 0 already"),
        (["0,0,0,1,1", "0,1"], "line 3: "),
        (["0,0,0,1,1"], "no step has a route for each of the 2 layers"),
    ],
)
def test_a_bad_route_is_named_with_its_line(tmp_path: Path, lines: list[str], told: str) -> None:
    file = recorded(tmp_path / "run.csv", *lines)
    with pytest.raises(UsageError, match=f"run.csv:? {told}"):
        routes_of(str(file), CONFIG, 8)


def test_files_that_hold_no_routes(tmp_path: Path) -> None:
    for name, data, told in [
        ("a.csv", b"step,layer,expert\n0,0,0\n", "no column slot"),
        ("b.csv", b"", "no column step"),
        ("c.csv", b"step,layer,slot,expert\n\xff\xfe\n", "c.csv line"),
        ("d.csv.gz", b"step,layer,slot,expert\n", "d.csv.gz"),
        ("e.csv.gz", gzip.compress(b"step,layer,slot,expert\n" * 99)[:-9], "e.csv.gz"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=told):
            routes_of(str(tmp_path / name), CONFIG, 8)


def test_routes_that_a_model_cannot_take() -> None:
    session = Model(NANO_MOE, threads=1).session(n_ctx=8)
    with pytest.raises(UsageError, match="different ones"):
        session.force_routes(np.zeros((1, 3, 8), np.int32))
    with pytest.raises(ValueError, match="experts used"):
        session.force_routes(np.zeros((1, 3, 7), np.int32))
    dense = Model(resolve("nano"), threads=1)
    with pytest.raises(UsageError, match="mixture"):
        dense.session(n_ctx=8).force_routes(np.zeros((1, dense.config["n_layers"], 0), np.int32))


# ---- charts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "points", [[(8.0, 2.0)], [(4.0, 0.0), (8.0, 0.0)], [(16.0, 4.35), (4.0, 0.79), (6.0, 1e4)]]
)
def test_a_chart_is_well_formed_and_inside_its_field(points: list[tuple[float, float]]) -> None:
    chart = ElementTree.fromstring(line_chart("a <b> & c", "x", "y", [Series("s<1>", points)]))
    texts = [text.text for text in chart.iter(f"{SVG}text")]
    assert "a <b> & c" in texts and "s<1>" in texts
    circles = list(chart.iter(f"{SVG}circle"))
    assert len(circles) == len(points)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= float(chart.attrib["width"])
        assert 0 <= float(circle.attrib["cy"]) <= float(chart.attrib["height"])
    across = [float(circle.attrib["cx"]) for circle in circles]
    assert across == sorted(across)


# ---- what is given up ------------------------------------------------------------------


def test_an_approximation_is_reported_with_what_it_costs(qwen3: Command) -> None:
    ram = ("--ram", memory(0.3))
    exact = json.loads(qwen3(*BENCH, *ram, "--no-guess", "--json").stdout)
    assert exact["guess"] is False and "approximation" not in exact
    assert exact["by_ram"][0]["guesses"] == {"read": 0, "right": 0}
    assert "divergence" not in exact["by_ram"][0]
    lossy = ("--prefer-cached", "2", "--drop-misses", "0.05")
    report = json.loads(qwen3(*BENCH, *ram, *lossy, "--json").stdout)
    assert report["approximation"] == {"prefer": 2, "drop": 0.05}
    cost = report["by_ram"][0]["divergence"]
    assert cost["kl"] > 0 and 0 <= cost["same_top"] <= 1
    assert report["experts"]["hit_rate"] > exact["experts"]["hit_rate"]
    shown = qwen3(*BENCH, *ram, *lossy).stdout.splitlines()
    assert len(shown[-1].split("\t")) == 3 and shown[-1].endswith(" %")


def test_approximations_that_mean_nothing(qwen3: Command) -> None:
    for flags in (
        ("--prefer-cached", "101"),
        ("--drop-misses", "1.5"),
        ("--prefer-cached", "2", "--routes", "uniform"),
    ):
        done = qwen3(*BENCH, "--ram", memory(0.5), *flags)
        assert (done.returncode, done.stdout) == (2, ""), flags
    assert qwen3(*BENCH, "--drop-misses", "0.1").returncode == 2  # without --ram
