"""`harness questions build` from its options to its files.

Everything that can be wrong is found before the first request: options, annotations, the file to
write, predictions that may not be used.

Source: none, ours.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from harness.config import ConfigError
from harness.data.ek100 import Ek100Places
from harness.data.ek100.annotations import TRAIN, VALIDATION
from harness.data.ek100.classes import Classes
from harness.data.ek100.questions import about, records
from harness.progress import Live
from harness.questions import report
from harness.questions.budget import Budget, Prices
from harness.questions.build import assemble, contents_of, settle
from harness.questions.journal import Journal
from harness.questions.lexicon import Lexicon
from harness.questions.masking import POLICIES, Policy
from harness.questions.records import Built, beside, check_out, masked_again, write
from harness.questions.rows import Content, Row, read_rows
from harness.questions.template import LEVELS
from harness.questions.writers import Described, Model, Replay, Template, Writer
from harness.registry import unknown
from harness.site import places

BACKENDS = ("template", "openai", "hf", "replay")
CHOICES = {
    "backend": BACKENDS,
    "policy": POLICIES,
    "task": ("recognition", "anticipation"),
    "describe": ("target", "observed"),
}


@dataclass(frozen=True)
class Wanted:
    """The options of a build, checked."""

    options: Mapping[str, Any]
    shard: int
    shards: int
    policy: Policy

    @staticmethod
    def checked(options: Mapping[str, Any]) -> Wanted:
        """Raises ConfigError with every mistake."""
        wrong = [
            f"--{name}: {unknown(options[name], list(known), 'value')}"
            for name, known in CHOICES.items()
            if options[name] not in known
        ]
        backend = options["backend"]
        options = {**options, "level": _level(options)}
        if options["level"] not in LEVELS:
            wrong.append(f"--level: {options['level']} is none of 0, 1, 2")
        elif backend == "template" and options["level"] == 2 and options["predictions"]:
            wrong.append("--level: 2 is the narration, and what is predicted has none; take 1")
        if Path(options["out"]).suffix != ".jsonl":
            wrong.append(f"--out: {options['out']}: give it a name that ends with .jsonl")
        if options["shard"] and backend not in ("openai", "hf"):
            wrong.append(f"--shard: --backend {backend} has no work to share out")
        if backend in ("openai", "hf") and not options["model"]:
            wrong.append(f"--model: is missing; --backend {backend} asks a language model")
        if (backend == "replay") != bool(options["replay"]):
            wrong.append("--replay: FILE goes with --backend replay, and that needs one")
        priced = options["price_in"] is not None and options["price_out"] is not None
        if options["max_cost"] is not None and not priced:
            wrong.append("--max-cost: needs --price-in and --price-out, which providers publish")
        if options["task"] == "recognition" and options["describe"] == "observed":
            wrong.append("--describe observed: is for --task anticipation")
        if options["describe"] == "observed" and not options["predictions"]:
            wrong.append("--describe observed: needs --predictions")
        shard, shards = _shard(options["shard"])
        if not 0 <= shard < shards:
            wrong.append(f"--shard: {options['shard']!r} is not i/n with i from 0 to n - 1")
        if wrong:
            raise ConfigError(*wrong)
        return Wanted(options, shard, shards, cast(Policy, options["policy"]))

    def __getitem__(self, name: str) -> Any:
        return self.options[name]


def _level(options: Mapping[str, Any]) -> int:
    if options["level"] is not None:
        return int(options["level"])
    return 1 if options["predictions"] else 2


def _shard(text: str) -> tuple[int, int]:
    if not text:
        return 0, 1
    number, _, of = text.partition("/")
    return (int(number), int(of)) if number.isdecimal() and of.isdecimal() else (-1, 0)


class Session:
    """One call of the command."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.places = places_of(wanted["annotations"])
        assert self.places.annotations is not None
        self.out: Path = wanted["out"]
        try:
            self.classes = Classes.read(self.places.annotations)
            self.rows = self._rows()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.lexicon = Lexicon(self.classes)

    def run(self) -> int:
        """The exit code: 1 if a row failed or was left out."""
        wanted = self.wanted
        with ExitStack() as held:
            writer, budget = self._writer(held)
            made = {
                "label_source": self.rows[0].content.label_source,
                "provenance": writer.provenance,
                "mask": {"policy": wanted.policy, "lexicon_sha": self.lexicon.sha},
                "allow_leak": wanted["allow_leak"],
            }
            check_out(self.out, about(made), wanted["overwrite"])
            contents = contents_of(self.rows, wanted["limit"], wanted.shard, wanted.shards)
            self._announce(contents, writer, budget)
            if wanted["dry_run"]:
                return 0
            started = time.monotonic()
            with Live() as live:
                settled = settle(
                    contents, writer, self.lexicon, wanted.policy, self._jobs(),
                    lambda done, total, note: live.update("build", "questions", done, total, note),
                )  # fmt: skip
            spent = _spent(writer, budget, time.monotonic() - started)
            built = assemble(
                contents, settled, writer, self.lexicon, wanted.policy, wanted["allow_leak"]
            )
        return self._finish(built, spent)

    def _jobs(self) -> int:
        """At once: one where no server is waited for."""
        return int(self.wanted["jobs"]) if self.wanted["backend"] == "openai" else 1

    def _finish(self, built: Built, spent: str) -> int:
        if self.wanted.shards > 1:
            told = f"shard {self.wanted['shard']}: {len(built.records):,} rows, "
            print(f"{told}{len(built.failed):,} failed; {spent}", file=sys.stderr)
            print(f"once all shards are done, the same command without --shard writes {self.out}")
            return 1 if built.failed or built.left else 0
        text = report.summary(built, self.rows, self.wanted.policy, spent)
        print(text.partition("\n\n")[0])
        write(self.out, built, text, self.wanted["overwrite"])
        files = ", ".join(str(beside(self.out, suffix)) for suffix in (".csv", ".report.md"))
        print(f"{self.out} written; beside it {files}", file=sys.stderr)
        if built.left:
            print(
                f"{built.left:,} different rows were not asked about: --max-cost is reached; the "
                f"same command with more goes on from here", file=sys.stderr,
            )  # fmt: skip
        if built.failed:
            print(
                f"{len(built.failed):,} rows failed, e.g. {built.failed[0]['narration_id']}: "
                f"{built.failed[0]['why'][:300]}; all in {beside(self.out, '.failed.jsonl')}; "
                f"--retry asks again", file=sys.stderr,
            )  # fmt: skip
        return 1 if built.failed or built.left else 0

    def _announce(
        self, contents: Mapping[Content, Sequence[Row]], writer: Writer, budget: Budget | None
    ) -> None:
        count = sum(map(len, contents.values()))
        told = f"{count:,} rows, {len(contents):,} of them different"
        cost = writer.forecast(list(contents))
        print(f"{told}; {cost or 'nothing has to be asked'}", file=sys.stderr, flush=True)
        if budget is not None and budget.spent:
            print(f"spent before: ${budget.spent:,.2f}", file=sys.stderr, flush=True)

    def _writer(self, held: ExitStack) -> tuple[Writer, Budget | None]:
        wanted = self.wanted
        if wanted["backend"] == "template":
            return Template(wanted["level"], self.classes), None
        if wanted["backend"] == "replay":
            try:
                return Replay(wanted["replay"]), None
            except ValueError as error:
                raise ConfigError(f"--replay: {error}") from None
        model, settings = self._model()
        journal = held.enter_context(
            Journal(beside(self.out, ".parts"), wanted.shard, wanted.shards, wanted["dry_run"])
        )
        if journal.lost:
            print(f"{journal.folder}: {journal.lost} cut lines were skipped", file=sys.stderr)
        most = None if wanted["max_cost"] is None else wanted["max_cost"] / wanted.shards
        budget = Budget(Prices(wanted["price_in"], wanted["price_out"]), most)
        for key, answer in journal.answers.items():
            if wanted.shards == 1 or key in journal.own:
                budget.pay(answer)
        writer = Described(
            model, journal, budget, name=wanted["model"], settings=settings, seed=wanted["seed"],
            retry=wanted["retry"], prompts=wanted["prompts"],
        )  # fmt: skip
        return writer, budget

    def _model(self) -> tuple[Model, dict[str, Any]]:
        wanted = self.wanted
        settings = {name: wanted[name] for name in ("temperature", "top_p", "max_tokens")}
        if wanted["backend"] == "hf":
            from harness.questions.local import Local

            local = Local(wanted["model"], **settings)
            return local, {**settings, "revision": local.revision}
        from harness.questions.chat import Chat, ChatSettings

        more = {
            name: wanted[name] for name in ("base_url", "key_env", "timeout", "retries", "rate")
        }
        return Chat(ChatSettings(wanted["model"], **settings, **more)), settings

    def _rows(self) -> list[Row]:
        """What is asked about. Raises ConfigError where it may not be."""
        wanted = self.wanted
        assert self.places.annotations is not None
        own = self.places.train or self.places.annotations / TRAIN
        train = (
            frozenset(row.narration_id for row in read_rows(own)) if own.is_file() else frozenset()
        )
        tested = self.places.annotations / VALIDATION
        files = wanted["rows"] or [own, tested]
        found = [row for file in files for row in read_rows(file)]
        if twice := len(found) - len({row.narration_id for row in found}):
            raise ConfigError(f"{', '.join(map(str, files))}: {twice} segments are there twice")
        ahead = wanted["ahead"] if wanted["task"] == "anticipation" else None
        if wanted["predictions"]:
            from harness.cli_evaluate import read_named, runs_named
            from harness.questions.predicted import rows_from

            named = [read_named(name) for name in runs_named(wanted["predictions"])]
            said = [(predictions, str(path)) for predictions, path in named]
            held_out = frozenset(row.narration_id for row in read_rows(tested))
            found = rows_from(found, held_out, said, self.classes, ahead, wanted["describe"])
        elif ahead is not None and not wanted["allow_leak"]:
            leaking = [row.narration_id for row in found if row.narration_id not in train]
            if leaking:
                raise ConfigError(
                    f"--task anticipation: {len(leaking):,} rows of the test split, e.g. "
                    f"{leaking[0]}: their true labels are what is to be anticipated. Take "
                    f"--predictions RUNS, or --allow-leak, which every result made with them will "
                    f"say"
                )
        if wanted["backend"] == "replay":  # each has its own
            found = [
                row._replace(content=row.content._replace(alone=row.narration_id)) for row in found
            ]
        return found


def places_of(annotations: Path | None) -> Ek100Places:
    """Where the annotations lie. Raises ConfigError where that is not known."""
    own = Ek100Places(**places("ek100", Ek100Places))
    if annotations is not None:
        own = own.model_copy(update={"annotations": annotations, "train": None})
    if own.annotations is None:
        raise ConfigError(
            "--annotations: where those of EPIC-Kitchens-100 lie is not known: give their folder, "
            "or write `data: {ek100: {annotations: DIR}}` into harness.site.yaml; see docs/ek100.md"
        )
    return own


def _spent(writer: Writer, budget: Budget | None, seconds: float) -> str:
    if not isinstance(writer, Described) or budget is None:
        return ""
    tokens = [sum(getattr(answer, name) for answer in writer.journal.answers.values())
              for name in ("tokens_in", "tokens_out")]  # fmt: skip
    told = (
        f"{writer.asked:,} requests in {seconds:,.0f} s; in all {tokens[0]:,} tokens in, "
        f"{tokens[1]:,} out"
    )
    return f"{told}, ${budget.spent:,.2f}" if budget.prices.known else told


def mask_file(file: Path, out: Path, policy: str, annotations: Path | None, overwrite: bool) -> str:
    """Mask a file anew; the summary. Raises ConfigError."""
    if policy not in POLICIES:
        raise ConfigError(f"--policy: {unknown(policy, list(POLICIES), 'value')}")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out: {out} is there already; take another name, or --overwrite")
    own = places_of(annotations)
    assert own.annotations is not None
    try:
        old, classes = list(records(file)), Classes.read(own.annotations)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    built = masked_again(old, Lexicon(classes), cast(Policy, policy))
    text = report.summary(built, (), policy, "")
    write(out, built, text, overwrite, failed_too=False)
    return text.partition("\n\n")[0]
