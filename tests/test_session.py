"""Conversations: what is sent, what comes back, what is kept. With a scripted engine, and with
the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from byte_tokenizer import ByteTokenizer

import qwen3cli
from qwen3cli.engine import Cancelled, Model, Sampling
from qwen3cli.errors import ContextOverflow
from qwen3cli.prompt import Generation
from qwen3cli.session import Answer, Closed, Conversation, Reply, Settings, Thought
from qwen3cli.thinking.control import STOP_TEXT, Landing

TEMPLATES = {
    Generation.HYBRID: "enable_thinking",
    Generation.INSTRUCT: "add_generation_prompt",
    Generation.THINKING: "add_generation_prompt <think>",
}


class FakeSession:
    """Says what its script says; remembers what it was handed."""

    def __init__(self, generation: Generation = Generation.HYBRID, n_ctx: int = 4096) -> None:
        self.tokenizer = ByteTokenizer()
        metadata = {
            "tokenizer.chat_template": TEMPLATES[generation],
            "general.name": f"Qwen3 {generation.value}",
            "tokenizer.ggml.eos_token_id": self.tokenizer.added["<|im_end|>"],
        }
        self.model = SimpleNamespace(tokenizer=self.tokenizer, metadata=lambda: metadata)
        self.n_ctx = n_ctx
        self.ids: list[int] = []
        self.sampling: Sampling | None = None
        self.cancelled = False
        self.calls = 0
        self.at_call: dict[int, Any] = {}  # what happens in the n-th computation
        self._script: Iterator[int] = iter(())

    def says(self, *texts: str | int) -> FakeSession:
        """Tokens, and texts that are spoken byte by byte, then the end token."""
        ids: list[int] = []
        for text in texts:
            ids += [text] if isinstance(text, int) else self.parse(text)
        self._script = iter([*ids, self.tokenizer.added["<|im_end|>"]])
        return self

    def parse(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            token = next((t for t in self.tokenizer.added if text.startswith(t)), None)
            ids += [self.tokenizer.added[token]] if token else self.tokenizer.encode(text[0])
            text = text[len(token or text[0]) :]
        return ids

    def __len__(self) -> int:
        return len(self.ids)

    def _compute(self) -> None:
        if action := self.at_call.get(self.calls):
            action()
        self.calls += 1
        if self.cancelled:
            self.cancelled = False
            raise Cancelled("cancelled")

    def sync(self, ids: Sequence[int]) -> int:
        self._compute()
        reused = 0
        while reused < min(len(ids), len(self.ids)) and ids[reused] == self.ids[reused]:
            reused += 1
        self.ids = list(ids)
        return reused

    def extend(self, ids: Sequence[int]) -> None:
        self._compute()
        self.ids += ids
        assert len(self.ids) <= self.n_ctx

    def sample(self, sampling: Sampling = Sampling(), *, generated_from: int | None = None) -> int:
        if generated_from is None:  # the likeliest, without drawing it
            token = next(self._script)
            self._script = chain([token], self._script)
            return token
        self.sampling = sampling
        return next(self._script)

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def text(self) -> str:
        return self.tokenizer.decode(self.ids)


def conversation(session: FakeSession, **kwargs: Any) -> Conversation:
    return Conversation(session, **kwargs)  # type: ignore[arg-type]


def talk(
    session: FakeSession, text: str = "Q", **settings: Any
) -> tuple[Reply, list[Thought | Answer]]:
    *events, reply = conversation(session).reply(text, Settings(**settings))
    assert isinstance(reply, Reply)
    assert "".join(e.text for e in events if isinstance(e, Thought)) == reply.thoughts
    assert "".join(e.text for e in events if isinstance(e, Answer)) == reply.answer
    events = [event for event in events if not isinstance(event, Closed) and event.text]
    return reply, events  # type: ignore[return-value]


# ---- one reply ------------------------------------------------------------


def test_thoughts_and_answer_are_told_apart_and_trimmed() -> None:
    session = FakeSession().says("<think>\n\n1 + 1\nis 2\n</think>\n\nIt is 2.")
    reply, events = talk(session)
    assert reply.thoughts == "1 + 1\nis 2"
    assert reply.answer == "It is 2."
    assert (reply.thinking_stop, reply.answer_stop) == ("natural", "end")
    assert reply.thinking_tokens == len("\n\n1 + 1\nis 2\n")
    assert reply.answer_tokens == len("\nIt is 2.")  # one newline token is structure
    assert events[0] == Thought("1", 3)
    assert session.text == (
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n1 + 1\nis 2\n</think>\n\nIt is 2."
    )
    assert (reply.prompt_tokens, reply.reused_tokens) == (len("user\nQ\nassistant\n") + 3, 0)


def test_indentation_and_the_end_of_the_answer_are_kept() -> None:
    reply, _ = talk(FakeSession().says("<think>t</think>\n \n\n    code\n\n"))
    assert reply.answer == "    code\n\n"


@pytest.mark.parametrize("budget", [1, 3, 10])
def test_a_budget_inserts_the_stop_text_out_of_sight(budget: int) -> None:
    session = FakeSession().says("<think>" + "t" * budget + "60")
    reply, _ = talk(session, budget=budget)
    assert (reply.thoughts, reply.answer) == ("t" * budget, "60")
    assert (reply.thinking_tokens, reply.budget) == (budget, budget)
    assert reply.thinking_stop == "budget"
    assert session.text.endswith(f"<think>{'t' * budget}\n\n{STOP_TEXT}\n</think>\n\n60")
    assert reply.inserted_tokens == len(f"\n\n{STOP_TEXT}\n\n\n") + 1


def test_a_budget_of_zero_and_a_soft_switch_ask_for_the_empty_block() -> None:
    for settings, text in (({"budget": 0}, "Q"), ({"think": False}, "Q"), ({}, "Q /no_think")):
        session = FakeSession().says("60")
        reply, _ = talk(session, text, **settings)
        assert session.text.endswith("assistant\n<think>\n\n</think>\n\n60")
        assert (reply.answer, reply.thinking_stop) == ("60", "off")


def test_each_generation_opens_its_own_way() -> None:
    session = FakeSession(Generation.THINKING).says("tt</think>\n\n60")
    reply, _ = talk(session, think=False)  # there is no other mode
    assert session.text.endswith("assistant\n<think>\ntt</think>\n\n60")
    assert (reply.thoughts, reply.thinking_tokens) == ("tt", 2)

    session = FakeSession(Generation.INSTRUCT).says("60")
    reply, _ = talk(session, budget=5)
    assert session.text.endswith("assistant\n60")
    assert (reply.thinking_stop, reply.thinking_tokens, reply.budget) == ("off", 0, 5)


def test_sampling_follows_the_mode_and_the_settings() -> None:
    session = FakeSession().says("<think>t</think>60")
    reply, _ = talk(session, top_k=5, seed=0)
    assert session.sampling == Sampling(temperature=0.6, top_p=0.95, top_k=5, seed=0)
    assert reply.seed == 0
    session.says("60")
    reply, _ = talk(session, think=False, temperature=0, presence_penalty=1.5)
    assert session.sampling == Sampling(
        temperature=0, top_p=0.8, top_k=20, presence_penalty=1.5, seed=reply.seed
    )


def test_a_random_seed_is_new_each_time_and_has_32_bits() -> None:
    seeds = {talk(FakeSession().says("60"))[0].seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_max_tokens_is_exact_and_nothing_is_computed_beyond_it() -> None:
    session = FakeSession().says("<think>ttt</think>\n123456")
    reply, _ = talk(session, max_tokens=3)
    assert (reply.answer, reply.answer_tokens, reply.answer_stop) == ("123", 3, "limit")
    assert session.text.endswith("</think>\n12")  # the last token needs no logits after it


def test_half_a_character_is_never_shown() -> None:
    session = FakeSession()
    smile = "🙂".encode()
    pieces = [session.tokenizer.piece(smile[i : i + 1]) for i in range(4)]
    close = session.tokenizer.added["</think>"]
    reply, events = talk(session.says("<think>", *pieces, pieces[0], close, *pieces, "!"))
    assert [event.text for event in events] == ["🙂", "🙂", "!"]
    reply, events = talk(session.says("a", *pieces), max_tokens=3)
    assert (reply.answer, [event.text for event in events]) == ("a", ["a"])
    reply, _ = talk(session.says("a", *pieces[:2]))  # the model itself ended there
    assert reply.answer == "a\ufffd"


# ---- stop texts -----------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "stop", "answer"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STO two", ["STOP"], "one STO two"),
        ("one STO", ["STOP"], "one STO"),  # held back, then shown
        ("one\n\ntwo", ["\n\n"], "one"),
        ("\n\none\n\ntwo", ["\n\n"], "one"),  # blank lines before the answer are not its text
        ("aaab", ["aab"], "a"),
        ("xyz", ["z", "yz"], "x"),
        ("héllo", ["é"], "h"),
        ("one", [""], "one"),
    ],
)
def test_the_answer_ends_before_a_stop_text(said: str, stop: list[str], answer: str) -> None:
    reply, events = talk(FakeSession().says(said), think=False, stop=stop)
    assert reply.answer == answer
    assert reply.answer_stop == ("end" if reply.answer == said.lstrip() else "stop")
    assert all(event.text for event in events)


def test_a_stop_text_inside_one_token_and_in_the_thoughts() -> None:
    session = FakeSession()
    token = session.tokenizer.piece("abcSTOPdef")
    reply, _ = talk(session.says("<think>STOP</think>", token), stop=["STOP"])
    assert (reply.thoughts, reply.answer, reply.answer_stop) == ("STOP", "abc", "stop")


# ---- several turns --------------------------------------------------------


def test_turns_build_on_each_other_and_history_has_no_thoughts() -> None:
    session = FakeSession().says("<think>T1</think>\n\nA1")
    talker = conversation(session, system="S")
    list(talker.reply("Q1"))
    session.says("<think>T2</think>\n\nA2")
    *_, reply = talker.reply("Q2")
    assert isinstance(reply, Reply)
    head = (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n"
    )
    assert session.text.startswith(head + "A1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n")
    assert reply.reused_tokens == len(session.parse(head))
    assert talker.messages == [
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1", "reasoning_content": "T1"},
        {"role": "user", "content": "Q2"},
        {"role": "assistant", "content": "A2", "reasoning_content": "T2"},
    ]
    talker.clear()
    assert (talker.messages, talker.system) == ([], "S")


def test_tools_and_their_answers_are_sent() -> None:
    session = FakeSession().says("It rains.")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    talker = conversation(session, tools=[tool])
    talker.messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": {}}]},
        {"role": "tool", "content": "rain"},
    ]
    *_, reply = talker.reply()
    assert isinstance(reply, Reply)
    assert json.dumps(tool) in session.text
    assert "<tool_response>\nrain\n</tool_response>" in session.text
    assert reply.answer == talker.messages[-1]["content"] == "It rains."


@pytest.mark.parametrize("generation", Generation)
def test_the_mode_is_known_before_the_answer(generation: Generation) -> None:
    talker = conversation(FakeSession(generation), system="Be brief. /no_think")
    switchable = generation is Generation.HYBRID
    always = generation is Generation.THINKING
    assert talker.thinks() is always
    talker.system = None
    assert talker.thinks() is (switchable or always)
    for settings in (Settings(think=False), Settings(budget=0)):
        assert talker.thinks(settings) is always


def test_a_prompt_can_end_with_what_was_said() -> None:
    talker = conversation(FakeSession())
    assert talker.prompt(add_generation_prompt=False) == []
    assert talker.session.model.tokenizer.decode(talker.prompt()) == "<|im_start|>assistant\n"


# ---- interrupts and errors ------------------------------------------------


def interrupted_at(call: int) -> tuple[Conversation, Reply]:
    """A reply that is interrupted from elsewhere while the engine computes."""
    session = FakeSession().says("<think>TT</think>\nAB")
    talker = conversation(session)
    session.at_call[call] = talker.interrupt
    *_, reply = talker.reply("Q")
    assert isinstance(reply, Reply)
    return talker, reply


@pytest.mark.parametrize("call", range(4))
def test_an_interrupt_before_the_answer_takes_the_question_back(call: int) -> None:
    talker, reply = interrupted_at(call)
    assert (reply.answer, reply.answer_stop, reply.thinking_stop) == ("", "user", "user")
    assert reply.thoughts == "TT"[: max(call - 1, 0)]
    assert talker.messages == []


def test_an_interrupt_in_the_answer_keeps_what_there_is() -> None:
    talker, reply = interrupted_at(6)
    assert (reply.answer, reply.answer_stop, reply.thinking_stop) == ("A", "user", "natural")
    assert talker.messages == [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "reasoning_content": "TT"},
    ]


@pytest.mark.parametrize("call", range(7))
def test_the_conversation_goes_on_after_an_interrupt(call: int) -> None:
    talker, _ = interrupted_at(call)
    before = len(talker.messages)
    talker.session.says("<think>T</think>A2")  # type: ignore[attr-defined]
    *_, reply = talker.reply("Q2")
    assert isinstance(reply, Reply)
    assert (reply.answer, reply.answer_stop) == ("A2", "end")
    assert len(talker.messages) == before + 2


def test_an_interrupt_before_the_first_event_counts() -> None:
    talker = conversation(FakeSession().says("A"))
    events = talker.reply("Q")
    talker.interrupt()
    assert [event.answer_stop for event in events if isinstance(event, Reply)] == ["user"]
    assert talker.messages == []


def test_an_interrupt_between_replies_does_nothing() -> None:
    session = FakeSession().says("<think>T</think>A")
    talker = conversation(session)
    talker.interrupt()
    *_, reply = talker.reply("Q")
    assert isinstance(reply, Reply)
    assert (reply.answer, reply.answer_stop) == ("A", "end")


@pytest.mark.parametrize("events", range(1, 5))
def test_a_caller_that_stops_listening_leaves_a_usable_conversation(events: int) -> None:
    session = FakeSession().says("<think>TT</think>AB")
    talker = conversation(session)
    replying = talker.reply("Q")
    for _ in range(events):
        last = next(replying)
    replying.close()  # type: ignore[attr-defined]
    answered = isinstance(last, Answer)
    assert [message["role"] for message in talker.messages] == ["user", "assistant"] * answered


@pytest.mark.parametrize("call", range(7))
def test_a_keyboard_interrupt_inside_the_engine(call: int) -> None:
    def press() -> None:
        raise KeyboardInterrupt

    session = FakeSession().says("<think>TT</think>\nAB")
    talker = conversation(session)
    session.at_call[call] = press
    with pytest.raises(KeyboardInterrupt):
        list(talker.reply("Q"))
    assert [m["content"] for m in talker.messages] == (["Q", "A"] if call == 6 else [])


def test_a_prompt_beyond_the_context_says_how_far_and_loses_nothing() -> None:
    session = FakeSession(n_ctx=64).says("<think>T</think>A")
    talker = conversation(session)
    list(talker.reply("Q"))
    kept = list(talker.messages)
    with pytest.raises(ContextOverflow, match=r"too many for a context of 64.*--ctx N") as older:
        list(talker.reply("x" * 100))
    assert talker.messages == kept and "--overflow drop-oldest" in str(older.value)
    with pytest.raises(ContextOverflow) as alone:
        list(conversation(FakeSession(n_ctx=64)).reply("x" * 100))
    assert "--overflow" not in str(alone.value)
    session.says("A2")
    *_, reply = talker.reply("Q2")
    assert isinstance(reply, Reply)
    assert reply.answer == "A2"


@pytest.mark.parametrize("over", [0, 1, 5])
def test_the_overflow_is_counted_with_one_token_for_the_answer(over: int) -> None:
    session = FakeSession().says("A")
    talker = conversation(session)
    session.n_ctx = len(session.parse("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"))
    session.n_ctx += 1 - over
    if over:
        with pytest.raises(ContextOverflow, match=f" {over} too many"):
            list(talker.reply("Q"))
    else:
        *_, reply = talker.reply("Q", Settings(think=True))
        assert isinstance(reply, Reply)
        assert (reply.answer, reply.answer_stop) == ("A", "limit")


def test_an_engine_error_takes_the_question_back() -> None:
    def fail() -> None:
        raise ContextOverflow("too long")

    for call in range(5):
        session = FakeSession().says("<think>TT</think>AB")
        talker = conversation(session)
        session.at_call[call] = fail
        with pytest.raises(ContextOverflow):
            list(talker.reply("Q"))
        assert talker.messages == []


# ---- the embedded model ---------------------------------------------------

NANO = Path(qwen3cli.__file__).parent / "models/nano-dense-q8_0.gguf"
SUM = "What is 17 + 48 - 5?"


@pytest.fixture(scope="module")
def nano() -> Model:
    return Model(NANO)


def ask(model: Model, text: str = SUM, **settings: Any) -> Reply:
    talker = Conversation(model.session(n_ctx=1024))
    *_, reply = talker.reply(text, Settings(temperature=0, **settings))
    assert isinstance(reply, Reply)
    return reply


def test_nano_thinks_and_is_right(nano: Model) -> None:
    reply = ask(nano)
    assert reply.answer == "60"
    assert reply.thoughts.startswith("17 + 48: 7+8=15")
    assert (reply.thinking_stop, reply.answer_stop, reply.inserted_tokens) == ("natural", "end", 0)
    assert reply.prefill_tok_s > 0
    assert reply.decode_tok_s > 0


@pytest.mark.parametrize("landing", ["hard", "soft"])
def test_nano_budget_matrix(nano: Model, landing: Landing) -> None:
    natural = ask(nano).thinking_tokens
    for budget in (1, 7, natural - 1, natural, natural + 1, 10 * natural):
        reply = ask(nano, budget=budget, landing=landing)
        cut = reply.thinking_stop == "budget"
        if landing == "hard":
            assert cut is (budget <= natural)
            assert reply.thinking_tokens == min(budget, natural)
        else:
            least = min(budget - budget // 10, natural)
            assert least <= reply.thinking_tokens <= min(budget, natural)
        assert reply.thinking_stop in ("budget", "natural")
        assert bool(reply.inserted_tokens) is cut
        assert reply.answer.isdigit()
    off = ask(nano, budget=0, landing=landing)
    assert (off.thinking_tokens, off.thinking_stop) == (0, "off")
    assert off.answer.isdigit()


def test_nano_as_a_model_that_always_thinks(nano: Model) -> None:
    """The same weights under the prompt that ends with <think>."""
    for budget in (None, 0, 1, 12, 1000):
        talker = Conversation(nano.session(n_ctx=1024))
        talker.generation = Generation.THINKING
        *_, reply = talker.reply(SUM, Settings(temperature=0, budget=budget))
        assert isinstance(reply, Reply)
        assert reply.thinking_stop == ("natural" if budget in (None, 1000) else "budget")
        if reply.thinking_stop == "budget":
            assert reply.thinking_tokens == budget
        assert reply.answer.isdigit()


def test_nano_obeys_soft_switches_and_the_answer_limit(nano: Model) -> None:
    off = ask(nano, SUM + " /no_think")
    assert (off.thinking_stop, off.thoughts) == ("off", "")
    cut = ask(nano, max_tokens=1)
    assert (cut.answer, cut.answer_tokens, cut.answer_stop) == ("6", 1, "limit")
    assert cut.thinking_stop == "natural"


def test_nano_reuses_the_prefix_of_earlier_turns(nano: Model) -> None:
    session = nano.session(n_ctx=1024)
    talker = Conversation(session)
    for turn, question in enumerate(("hello", SUM, "thanks")):
        *_, reply = talker.reply(question, Settings(temperature=0, seed=1))
        assert isinstance(reply, Reply)
        fresh = Conversation(nano.session(n_ctx=1024))
        fresh.messages = talker.messages[:-2]
        *_, again = fresh.reply(question, Settings(temperature=0, seed=1))
        assert isinstance(again, Reply)
        assert (reply.thoughts, reply.answer) == (again.thoughts, again.answer)
        assert (reply.reused_tokens > 0) is (turn > 0)


def test_nano_repeats_itself_under_the_same_seed(nano: Model) -> None:
    def sampled(seed: int) -> Reply:
        talker = Conversation(nano.session(n_ctx=1024))
        *_, reply = talker.reply("What can you do?", Settings(temperature=3, top_k=0, seed=seed))
        assert isinstance(reply, Reply)
        return reply

    first, second, other = sampled(1), sampled(1), sampled(2)
    assert (first.thoughts, first.answer) == (second.thoughts, second.answer)
    assert (first.thoughts, first.answer) != (other.thoughts, other.answer)
