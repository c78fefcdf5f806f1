"""Questions by a language model: a server that misbehaves, on loopback, and a tiny local model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import questions_bench as bench
from questions_bench import KEY, Server, asked, error, good, harness, reply

from harness.config import ConfigError
from harness.questions.chat import Chat, ChatSettings, Unanswered
from harness.questions.journal import Answer, Journal

ROOT = Path(__file__).resolve().parents[1]
CONTENTS = len(bench.SAID)
REQUESTS = 2 * CONTENTS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return bench.write_annotations(tmp_path)


def build(folder, server, *words):
    address = ("--backend", "openai", "--model", "tiny", "--base-url", server.url)
    return harness(folder, "questions", "build", *address, "--out", "q.jsonl", *words)


def nowhere_is_the_key(folder, *texts):
    """No file below `folder`, and nothing that was printed, has it."""
    for text in texts:
        assert KEY not in text
    for file in folder.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file


def accounted(folder):
    """Narration ids with questions, and those that failed; together they are all."""
    records = bench.read(folder / "q.jsonl")
    file = folder / "q.jsonl.failed.jsonl"
    failed = bench.read(file) if file.exists() else []
    named = [row["narration_id"] for row in (*records, *failed)]
    assert len(named) == len(set(named)) == 64
    return records, failed


def test_each_different_row_is_described_and_asked_about_once(folder):
    with Server() as server:
        done = build(folder, server, "--price-in", 2.5, "--price-out", 10)
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) == REQUESTS
    assert max(server.counts.values()) == 1
    records, failed = accounted(folder)
    assert not failed
    one = next(r for r in records if r["verb_answer"] == "slice")
    assert one["verb_question_raw"] == "What does the person do with the leaf?"
    assert one["verb_question"] == "What does the person do with the <MASK>?"
    assert one["noun_question"] == "What does the person <MASK> in the kitchen?"
    assert one["description"] == "The person is seen to slicing leaves."
    assert one["leak"]["status"] == "masked"
    origin, host = one["provenance"], f"127.0.0.1:{server.http.server_port}"
    assert (origin["backend"], origin["model"], origin["host"]) == ("openai", "tiny", host)
    assert origin["usage"] == {"in": 1200, "out": 120}
    assert origin["model_revision"] == "tiny-1"
    assert len(origin["prompt_sha256"]) == 64
    body = server.bodies[0]
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["description"]
    assert (body["temperature"], body["seed"]) == (0.0, 0)
    assert server.keys[0] == f"Bearer {KEY}"
    assert "12 requests" in done.stderr  # the estimate
    dollars = REQUESTS * (600 * 2.5 + 60 * 10) / 1e6
    assert f"${dollars:,.2f}" in done.stdout
    nowhere_is_the_key(folder, done.stdout, done.stderr)


def test_whatever_a_server_does_every_row_is_accounted_for_and_the_key_is_nowhere(folder):
    """429, 500, a cut answer, a refusal, a slow one, duplicates, an error that repeats the key."""

    def plan(number, body):
        text = asked(body)
        if number == 0:
            return error(429, f"slow down, {KEY}", **{"Retry-After": "0"})
        if number == 1:
            return error(500, "oops", **{"Retry-After": "0"})
        if number == 2:
            return 200, {}, "<html>no JSON</html>"
        if number == 3:
            time.sleep(3)  # longer than --timeout
        if "slicing leaves" in text and text.startswith("Note"):
            return 200, {}, reply(None, number, refusal=f"I cannot, {KEY}")
        if "Thing: bread knife" in text:
            return 200, {}, reply('{"verb_question": "What does', number, finish="length")
        if "Thing: saucepan" in text and body["seed"] == 0:
            return 200, {}, reply("Sure! What?", number)
        return 200, {}, good(body, 7)  # one id for all

    with Server(plan) as server:
        done = build(folder, server, "--timeout", 2, "--jobs", 3)
    assert done.returncode == 1
    records, failed = accounted(folder)
    why = {row["why"] for row in failed}
    assert any(text.startswith("describe: refused: 'I cannot, [key]'") for text in why)
    assert any("ask: cut by --max-tokens" in text for text in why)
    assert len(why) == 2
    assert {r["verb_answer"] for r in records} == {"pick-up", "put-down", "rinse", "turn-on"}
    again = next(r for r in records if r["verb_answer"] == "rinse")
    assert again["provenance"]["n_attempts"] == 2
    assert again["leak"]["status"] == "regenerated"
    assert "rows failed, e.g." in done.stderr
    assert "Traceback" not in done.stderr
    nowhere_is_the_key(folder, done.stdout, done.stderr)

    with Server() as healthy:  # the same command asks nothing; --retry only what had failed
        quiet = build(folder, healthy, "--timeout", 2, "--jobs", 3)
        assert (quiet.returncode, len(healthy.bodies)) == (1, 0)
        retried = build(folder, healthy, "--retry")
    assert retried.returncode == 0, retried.stderr
    assert len(healthy.bodies) == 3  # a description and its questions, and other questions
    assert not accounted(folder)[1]


def test_a_question_that_says_its_own_answer_is_asked_for_again_then_masked(folder):
    def plan(number, body):
        text = asked(body)
        if "Thing: leaf" in text:  # always
            said = {"verb_question": "How does the person slice the leaf?",
                    "noun_question": "What does the person slice?"}  # fmt: skip
        elif "Thing: tap" in text and body["seed"] == 0:  # the first time
            said = {"verb_question": "How is the tap turned on?",
                    "noun_question": "What is it that the person turns on?"}  # fmt: skip
        else:
            return None
        return 200, {}, reply(json.dumps(said), number)

    with Server(plan) as server:
        done = build(folder, server, "--policy", "paper")
    assert done.returncode == 0, done.stderr
    by_verb = {r["verb_answer"]: r for r in accounted(folder)[0]}
    slicing, turning = by_verb["slice"], by_verb["turn-on"]
    assert slicing["verb_question"] == "How does the person <MASK> the <MASK>?"
    assert slicing["leak"] == {"own_verb": 1, "own_noun": 0, "cross": 2, "near": 0,
                               "status": "masked"}  # fmt: skip
    assert turning["leak"]["status"] == "regenerated"
    assert turning["verb_question_raw"] == "What does the person do with the tap?"
    asked_of_leaf = [b for b in server.bodies if "Thing: leaf" in asked(b)]
    assert [b["seed"] for b in asked_of_leaf] == [0, 1, 2]
    assert [b["temperature"] for b in asked_of_leaf] == [0.0, 0.7, 0.7]


def started(folder, server, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "questions", "build", "--backend", "openai",
         "--model", "tiny", "--base-url", server.url, "--out", "q.jsonl", *map(str, words)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_after_a_kill_only_what_was_under_way_is_asked_again(folder):
    jobs = 2
    with Server(delay=0.3) as server:
        process = started(folder, server, "--jobs", jobs)
        deadline = time.monotonic() + 120
        while len(server.bodies) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 6 <= len(server.bodies) < REQUESTS
        time.sleep(0.5)  # what the server was at
        journal = next((folder / "q.jsonl.parts").glob("answers-*.jsonl"))
        with open(journal, "a") as out:
            out.write('{"key": "cut by the cra')
        done = build(folder, server, "--jobs", jobs)
        assert done.returncode == 0, done.stderr
    assert len(server.bodies) - len(server.counts) <= jobs
    assert len(server.counts) == REQUESTS
    assert "1 cut lines were skipped" in done.stderr
    records, failed = accounted(folder)
    assert not failed
    whole = (folder / "q.jsonl").read_bytes()
    with Server() as silent:
        again = build(folder, silent, "--jobs", jobs)
    assert (again.returncode, silent.bodies) == (0, [])
    assert (folder / "q.jsonl").read_bytes() == whole
    assert len(records) == 64


def test_two_builds_of_one_file_are_refused_and_shards_share_the_work(folder):
    with Server(delay=1.5) as server:
        first = started(folder, server, "--jobs", 1)
        deadline = time.monotonic() + 120
        while not server.bodies and time.monotonic() < deadline:
            time.sleep(0.02)
        second = build(folder, server)
        assert second.returncode == 2
        assert "another process writes it" in second.stderr
        first.wait(120)
        assert first.returncode == 0
    other = bench.write_annotations(folder / "other")
    with Server() as server:
        for part in range(2):
            done = build(other, server, "--shard", f"{part}/2")
            assert done.returncode == 0, done.stderr
            assert not (other / "q.jsonl").exists()
        assert len(server.bodies) == REQUESTS
        assert build(other, server).returncode == 0
        assert len(server.bodies) == REQUESTS
    first, second = ((one / "q.jsonl").read_text() for one in (folder, other))
    times = [json.loads(line)["provenance"].pop("created") for line in first.splitlines()]
    assert len(times) == len(second.splitlines())


def test_a_budget_is_kept_and_more_of_it_goes_on(folder):
    price = ("--price-in", 1000, "--price-out", 1000, "--jobs", 1, "--max-tokens", 100)
    with Server() as server:
        done = build(folder, server, *price, "--max-cost", 3)
        assert done.returncode == 1
        assert "--max-cost is reached" in done.stderr
        spent = 0.66 * len(server.bodies)
        assert 0 < spent <= 3
        assert build(folder, server, *price, "--max-cost", 100).returncode == 0
    assert len(server.bodies) == REQUESTS
    assert len(bench.read(folder / "q.jsonl")) == 64


def test_limit_tries_a_few_and_dry_run_asks_nothing(folder):
    with Server() as server:
        dry = build(folder, server, "--dry-run", "--price-in", 2.5, "--price-out", 10)
        assert (dry.returncode, server.bodies) == (0, [])
        assert "64 rows, 6 of them different; 12 requests" in dry.stderr
        assert "$0.0" in dry.stderr
        assert build(folder, server, "--limit", 2).returncode == 0
        assert len(server.bodies) == 4
        assert build(folder, server).returncode == 0
        assert len(server.bodies) == REQUESTS


def test_what_will_never_be_answered_ends_the_build_with_one_clear_message(folder):
    with Server(lambda number, body: error(401, f"Incorrect API key provided: {KEY}")) as server:
        done = build(folder, server)
    assert done.returncode == 2
    assert "Incorrect API key provided: [key]" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(server.bodies) <= 8
    nowhere_is_the_key(folder, done.stdout, done.stderr)
    with Server(lambda number, body: error(404, "no model tiny")) as server:
        done = build(folder, server)
    assert done.returncode == 2
    assert "model tiny" in done.stderr


def test_settings_that_a_server_refuses_are_left_out_and_that_is_recorded(folder):
    def plan(number, body):
        for name in ("response_format", "seed", "max_tokens"):
            if name in body:
                return error(400, f"Unsupported parameter: {name}")
        return None

    with Server(plan) as server:
        done = build(folder, server, "--jobs", 1)
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) == REQUESTS + 3
    assert server.bodies[-1]["max_completion_tokens"] == 300
    origin = bench.read(folder / "q.jsonl")[0]["provenance"]
    assert origin["settings_left_out"] == ["max_tokens", "response_format", "seed"]


def test_a_full_context_is_no_reason_to_leave_settings_out(folder):
    why = "maximum context length is 8 tokens, reduce max_tokens; the note speaks of a seed"
    with Server(lambda number, body: error(400, why)) as server:
        done = build(folder, server, "--jobs", 1, "--limit", 1)
    assert done.returncode == 1
    assert "maximum context length" in done.stderr
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "odd",
    ["<html>log in</html>", "{}", '{"error": {"message": "no"}}', '{"choices": null}',
     '{"id": "x", "choices": [{"finish_reason": "stop"}]}', "[]", "3"],
)  # fmt: skip
def test_a_reply_of_any_shape_is_asked_for_again(folder, odd):
    with Server(lambda number, body: None if number else (200, {}, odd)) as server:
        done = build(folder, server, "--limit", 1, "--jobs", 1)
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) == 3


def test_half_a_letter_in_an_answer_does_not_end_a_build(folder):
    def plan(number, body):
        if asked(body).startswith("Note"):
            return 200, {}, reply('{"description": "It \\ud83d is taken."}', number)
        return None

    with Server(plan) as server:
        assert build(folder, server).returncode == 0
        assert build(folder, server).returncode == 0
    assert accounted(folder)[0][0]["description"] == "It ? is taken."


def test_a_budget_is_kept_where_a_server_counts_no_tokens(folder):
    def plan(number, body):
        told = json.loads(good(body, number))
        told["usage"] = [None, {}][number % 2]
        return 200, {}, json.dumps(told)

    price = ("--price-in", 1000, "--price-out", 1000, "--jobs", 1, "--max-tokens", 100)
    with Server(plan) as server:
        done = build(folder, server, *price, "--max-cost", 2)
    assert done.returncode == 1
    assert 0 < len(server.bodies) < REQUESTS
    assert "--max-cost is reached" in done.stderr


def test_what_is_answered_already_is_kept_when_the_budget_is_spent(folder):
    def plan(number, body):
        return (200, {}, reply("no", number)) if "Thing: tap" in asked(body) else None

    price = ("--price-in", 1000, "--price-out", 1000, "--jobs", 1)
    with Server(plan) as server:
        assert build(folder, server, *price).returncode == 1
        whole, before = (folder / "q.jsonl").read_bytes(), len(server.bodies)
        done = build(folder, server, *price, "--retry", "--max-cost", 1)
        assert done.returncode == 1
        assert len(server.bodies) == before
    assert (folder / "q.jsonl").read_bytes() == whole


def test_a_file_is_not_lost_with_its_answers(folder):
    with Server() as server:
        assert build(folder, server).returncode == 0
    whole = (folder / "q.jsonl").read_bytes()
    for file in (folder / "q.jsonl.parts").iterdir():
        file.unlink()
    with Server(lambda number, body: error(503, "busy", **{"Retry-After": "0"})) as server:
        done = build(folder, server, "--retries", 0)
    assert done.returncode == 2
    assert "rows would be lost" in done.stderr
    assert (folder / "q.jsonl").read_bytes() == whole


def test_retry_leaves_good_questions_alone(folder):
    def plan(number, body):
        said = {"verb_question": "How is it sliced?", "noun_question": "What is sliced?"}
        return (200, {}, reply(json.dumps(said), number)) if "Thing: leaf" in asked(body) else None

    with Server(plan) as server:
        assert build(folder, server, "--policy", "paper").returncode == 0
        before = len(server.bodies)
        assert build(folder, server, "--policy", "paper", "--retry").returncode == 0
    assert len(server.bodies) == before == REQUESTS + 2


def test_an_empty_purse_ends_the_build(folder):
    body = json.dumps({"error": {"message": "pay first", "code": "insufficient_quota"}})
    with Server(lambda number, _: (429, {}, body)) as server:
        done = build(folder, server, "--jobs", 1)
    assert done.returncode == 2
    assert "pay first" in done.stderr
    assert len(server.bodies) == 1


def test_the_address_in_the_environment_is_recorded_and_a_key_that_is_a_word_spoils_nothing(
    folder, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with Server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        done = harness(folder, "questions", "build", "--backend", "openai", "--model", "tiny",
                       "--out", "q.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = bench.read(folder / "q.jsonl")
    assert records[0]["provenance"]["host"] == f"127.0.0.1:{server.http.server_port}"
    assert "[key]" not in (folder / "q.jsonl").read_text()


def test_the_key_is_in_no_run_that_uses_the_questions(folder):
    with Server() as server:
        assert build(folder, server).returncode == 0
    (folder / "harness.site.yaml").write_text(
        "data: {ek100: {annotations: annotations, questions: q.jsonl}}\n"
    )
    (folder / "s.yaml").write_text(
        "base:\n  data: {name: ek100}\n  encoders.text: {name: word_transformer}\n"
        "  fusion: {name: single}\n  width: 16\n"
        "  train: {epochs: 1, steps_per_epoch: 2, batch_size: 8}\n"
        "runs: {text: {}}\nreport: {table: t, title: T, metrics: [verb_top1]}\n"
    )
    done = harness(folder, "sweep", "s.yaml")
    assert done.returncode == 0, done.stderr
    report = harness(folder, "report")
    assert "questions by openai (tiny), policy strict" in report.stdout
    assert (folder / "runs" / "mlflow.db").exists()
    nowhere_is_the_key(folder, done.stderr, report.stdout)


def test_a_server_that_never_answers_fails_each_row_with_its_reason(folder):
    with Server(lambda number, body: error(503, "busy", **{"Retry-After": "0"})) as server:
        done = build(folder, server, "--retries", 1)
    assert done.returncode == 1
    assert len(bench.read(folder / "q.jsonl.failed.jsonl")) == 64
    assert "2 tries, the last: InternalServerError" in done.stderr
    assert (folder / "q.jsonl").read_text() == ""


def test_without_a_key_or_with_one_in_the_address_nothing_is_asked(folder, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    words = ("questions", "build", "--backend", "openai", "--model", "tiny")
    done = harness(folder, *words)
    assert done.returncode == 2
    assert "no key in the environment variable OPENAI_API_KEY" in done.stderr
    for address in (
        "http://me:pw@127.0.0.1:1/v1",
        "http://me:pw#1@h/v1",
        "127.0.0.1:1",
        "http://[::1",
    ):
        done = harness(folder, *words, "--base-url", address)
        assert done.returncode == 2
        assert "--base-url" in done.stderr
        assert "pw" not in done.stderr
    done = harness(folder, *words, "--key-env", KEY)
    assert done.returncode == 2
    assert KEY not in done.stderr
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines-of-a-key")
    done = harness(folder, *words)
    assert done.returncode == 2
    assert "lines-of" not in done.stderr


def test_waits_grow_and_follow_what_the_server_asks(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked_for, waits = ["7", "", "", ""], []

    def plan(number, body):
        return error(429, "slow", **({"Retry-After": asked_for[number]} if number == 0 else {}))

    with Server(plan) as server:
        chat = Chat(ChatSettings("tiny", server.url, retries=3, rate=60), waits.append)
        with pytest.raises(Unanswered, match="4 tries"):
            chat.ask([{"role": "user", "content": "hello"}], {"type": "object"}, 0, False)
    turns = waits[::2]  # of the rate: one request a second
    assert turns[0] == 0
    assert turns[3] > 2
    pauses = waits[1::2]
    assert pauses[0] == 7
    assert 1 <= pauses[1] <= 2
    assert 2 <= pauses[2] <= 4


def test_a_journal_keeps_the_first_answer_and_skips_what_is_cut(tmp_path):
    with Journal(tmp_path) as journal:
        journal.add("a", Answer("one"))
        journal.add("b", Answer("zwei \N{SNOWMAN}"))
    with open(journal.file, "a") as out:
        out.write(json.dumps({"key": "a", "answer": {"text": "later"}}) + '\n{"key": "c"}\n{"ke')
    with Journal(tmp_path) as again:
        assert again.answers["a"].text == "one"
        assert again.answers["b"].text == "zwei \N{SNOWMAN}"
        assert again.lost == 2
        with pytest.raises(ConfigError, match="another process writes it"), Journal(tmp_path):
            pass
        again.add("d", Answer("four"))
    with Journal(tmp_path, 1, 2) as other:
        assert set(other.answers) == {"a", "b", "d"}


# a local model


SAID = {
    "description": "The person does something with a thing.",
    "verb_question": "What does the person do with it?",
    "noun_question": "What does the person have in the hand?",
}


def causal_model(place, said=None):
    """A folder with a causal model over letters, of random weights; or one that says `said` as a
    single token after the last letter of a request, and then ends."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words["<end>"] = len(words)
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([said] if said else [])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(place)
    torch.manual_seed(0)
    end, size = words["<end>"], tokenizer.get_vocab_size()
    config = GPT2Config(vocab_size=size, n_positions=4096, n_embd=64, n_layer=1, n_head=2,
                        bos_token_id=end, eos_token_id=end, tie_word_embeddings=False)  # fmt: skip
    model = GPT2LMHeadModel(config)
    if said:
        told = tokenizer.token_to_id(said)
        with torch.no_grad():  # nothing is mixed: the next token follows from the last alone
            for name, weight in model.named_parameters():
                if "wpe" in name or "c_proj" in name or name == "lm_head.weight":
                    weight.zero_()
            for last, following in ((words[":"], told), (told, end)):
                hidden = torch.nn.functional.layer_norm(model.transformer.wte.weight[last], (64,))
                model.lm_head.weight[following] = hidden
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return causal_model(tmp_path_factory.mktemp("tiny"))


def test_a_local_model_is_asked_and_what_it_cannot_say_fails_with_a_reason(folder, tiny):
    words = ("questions", "build", "--backend", "hf", "--model", tiny, "--max-tokens", 8,
             "--limit", 2, "--out", "q.jsonl")  # fmt: skip
    done = harness(folder, *words)
    assert done.returncode == 1, done.stderr
    failed = bench.read(folder / "q.jsonl.failed.jsonl")
    assert all(row["why"].startswith("describe: cut by --max-tokens: ") for row in failed)
    journal = bench.read(next((folder / "q.jsonl.parts").glob("*.jsonl")))
    texts = [line["answer"]["text"] for line in journal]
    assert len(texts) == 6  # two descriptions, three tries each
    assert texts[0] != texts[1] != texts[2]  # another seed, and not greedily
    assert all(line["answer"]["tokens_out"] == 8 for line in journal)
    assert all(line["answer"]["model_revision"].startswith("sha256:") for line in journal)
    again = harness(folder, *words)
    assert again.returncode == 1
    assert len(bench.read(next((folder / "q.jsonl.parts").glob("*.jsonl")))) == 6


def test_what_a_local_model_says_becomes_questions(folder, tmp_path_factory):
    talking = causal_model(tmp_path_factory.mktemp("talking"), json.dumps(SAID))
    done = harness(folder, "questions", "build", "--backend", "hf", "--model", talking,
                   "--max-tokens", 8, "--out", "q.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    records, failed = accounted(folder)
    assert not failed
    assert {r["verb_question"] for r in records} == {SAID["verb_question"]}
    origin = records[0]["provenance"]
    assert origin["backend"] == "hf"
    assert origin["revision"] == origin["model_revision"]
    assert origin["usage"]["out"] == 4  # the answer and the end, twice


def test_a_model_that_is_not_there_is_named_with_what_to_give(folder):
    done = harness(folder, "questions", "build", "--backend", "hf", "--model", "no/such/folder")
    assert done.returncode == 2
    assert "--model no/such/folder" in done.stderr
    assert "give a folder with a causal language model" in done.stderr
