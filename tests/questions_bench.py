"""Class files and segments of their own kind, made up; and a server that speaks OpenAI's protocol,
as badly as real ones do."""

import contextlib
import csv
import io
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ek100_bench

from harness.cli import app
from harness.config import ConfigError

KEY = "sk-secret-0123456789abcdef"
VERBS = {
    0: ("take", ["take", "pick-up", "grab", "get-from", "fetch"], "retrieve"),
    1: ("put", ["put", "put-down", "place-on", "leave"], "leave"),
    2: ("wash", ["wash", "rinse", "clean-up", "wipe"], "clean"),
    3: ("turn-on", ["turn-on", "switch-on", "open-on"], "access"),
    4: ("cut", ["cut", "slice", "chop-up"], "split"),
}
NOUNS = {
    0: ("tap", ["tap", "tap:water"], "appliances"),
    1: ("knife", ["knife", "knife:bread", "blade"], "cutlery"),
    2: ("board:chopping", ["board:chopping", "board"], "utensils"),
    3: ("pan", ["pan", "saucepan", "pan:cast:iron"], "cookware"),
    4: ("leaf", ["leaf", "piece:leaf"], "vegetables"),
}
SAID = (
    ("take the bread knife", "take", 0, "knife:bread", 1),
    ("pick the knives up", "pick-up", 0, "knife", 1),
    ("put down chopping board", "put-down", 1, "board:chopping", 2),
    ("rinse sauce pan", "rinse", 2, "saucepan", 3),
    ("turn the big tap on", "turn-on", 3, "tap", 0),
    ("slicing leaves", "slice", 4, "leaf", 4),
)


def write_classes(folder: Path) -> Path:
    """97 verbs and 300 nouns; those beyond VERBS and NOUNS are words that nothing has."""
    for name, known, count in (("verb", VERBS, 97), ("noun", NOUNS, 300)):
        rows = []
        for number in range(count):
            letters = "".join(chr(ord("a") + int(digit)) for digit in f"{number:03}")
            other = f"zq{letters}", [f"zq{letters}"], f"group{number % 4}"
            key, instances, category = known.get(number, other)
            rows.append([number, key, repr(instances), category])
        file = folder / f"EPIC_100_{name}_classes.csv"
        ek100_bench.write_csv(file, ["id", "key", "instances", "category"], rows)
    return folder


def segments(videos, each=8):
    """As `ek100_bench.rows_of`, narrated."""
    found = []
    for place, one in enumerate(ek100_bench.rows_of(videos, each)):
        narration, verb, verb_class, noun, noun_class = SAID[place % len(SAID)]
        values = dict(zip(ek100_bench.COLUMNS, one, strict=True))
        values |= {"narration": narration, "verb": verb, "verb_class": verb_class, "noun": noun,
                   "noun_class": noun_class, "all_nouns": repr([noun]),
                   "all_noun_classes": repr([noun_class])}  # fmt: skip
        found.append(list(values.values()))
    return found


def write_annotations(folder: Path, each=8) -> Path:
    """Annotations whose narrations can be masked, classes included, and a site file beside them."""
    ek100_bench.write_annotations(
        folder / "annotations", segments(ek100_bench.TRAIN, each), segments(ek100_bench.TEST, each)
    )
    write_classes(folder / "annotations")
    (folder / "harness.site.yaml").write_text("data: {ek100: {annotations: annotations}}\n")
    return folder


@dataclass
class Done:
    """What a command did, as `subprocess` tells it."""

    returncode: int
    stdout: str
    stderr: str


def harness(folder: Path, *words: object) -> Done:
    """`harness WORDS` in `folder`, in this process: nothing has to be imported again."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = app([str(word) for word in words], standalone_mode=False) or 0
        except ConfigError as error:
            print(error, file=sys.stderr)
            code = 2
    return Done(int(code), out.getvalue(), err.getvalue())


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def table(file: Path) -> list[dict]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


class Server:
    """Answers on loopback. `plan` says what goes wrong: it is called with the number of the request
    and its body, and gives None (a good answer) or (status, headers, text)."""

    def __init__(self, plan=None, delay=0.0):
        self.plan, self.delay = plan or (lambda number, body: None), delay
        self.bodies, self.keys, self.counts = [], [], Counter()
        self._lock = threading.Lock()
        bench = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                bench.answer(self)

            def log_message(self, *words):
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass  # a client that was killed

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.keys.append(handler.headers.get("Authorization", ""))
            self.counts[asked(body)] += 1
        time.sleep(self.delay)
        status, headers, text = self.plan(number, body) or (200, {}, good(body, number))
        data = text.encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def asked(body) -> str:
    """What a request is about."""
    return body["messages"][-1]["content"]


def reply(content, number=0, finish="stop", refusal=None) -> str:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return json.dumps(
        {"id": f"r{number}", "object": "chat.completion", "created": 1, "model": "tiny-1",
         "choices": [{"index": 0, "finish_reason": finish, "message": message}],
         "usage": {"prompt_tokens": 600, "completion_tokens": 60, "total_tokens": 660}}
    )  # fmt: skip


def good(body, number=0) -> str:
    """A description that repeats the note; questions of which the first names the thing."""
    text = asked(body)
    if text.startswith("Note: "):
        told = {"description": f"The person is seen to {text.removeprefix('Note: ')}."}
    else:
        thing = text.rpartition("Thing: ")[2]
        action = text.rpartition("Action: ")[2].partition("\n")[0]
        told = {"verb_question": f"What does the person do with the {thing}?",
                "noun_question": f"What does the person {action} in the kitchen?"}  # fmt: skip
    return reply(json.dumps(told), number)


def error(status, message, **headers):
    return status, headers, json.dumps({"error": {"message": message, "type": "bad"}})
