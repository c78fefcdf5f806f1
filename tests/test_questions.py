"""Questions: what is masked, what is checked, and what a build accounts for."""

import json
from pathlib import Path

import numpy as np
import pytest
import questions_bench as bench
from ek100_bench import TEST, TRAIN

from harness.config import ConfigError
from harness.data.ek100 import questions as files
from harness.data.ek100.classes import Classes
from harness.questions import checks, template, writers
from harness.questions.lexicon import Lexicon, forms
from harness.questions.masking import hide, mask_pair, mentions, words_of
from harness.questions.prompts import prompt
from harness.questions.rows import Content, by_content, in_words, read_rows

SHARED = Path(__file__).resolve().parents[2] / "shared" / "ek100"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real annotations in ../shared")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bench.write_annotations(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def lexicon(folder):
    return Lexicon(Classes.read(folder / "annotations"))


def content(verb, verb_class, noun, noun_class, narration="x"):
    return Content(narration, verb, verb_class, noun, noun_class, "ground_truth")


def masked(lexicon, text, about, own=True):
    """As a verb question and as a noun question."""
    pair = mask_pair(text, text, about, lexicon, own)
    return pair.verb_question.text, pair.noun_question.text


TAKE_KNIFE = content("take", 0, "knife", 1)
TURN_TAP = content("turn-on", 3, "tap", 0)


@pytest.mark.parametrize(
    ("text", "about", "expected"),
    [
        ("Why took they the knives?", TAKE_KNIFE, "Why <MASK> they the <MASK>?"),
        ("What is being picked up?", TAKE_KNIFE, "What is being <MASK>?"),
        ("Is the big tap turned on?", TURN_TAP, "Is the big <MASK>?"),
        ("Turn the very big old tap on?", TURN_TAP, "<MASK> the very big old <MASK> on?"),
        ("Is it Turned-On?", TURN_TAP, "Is it <MASK>?"),
        ("Which bread knife?", TAKE_KNIFE, "Which <MASK>?"),
        ("Which bread?", TAKE_KNIFE, "Which bread?"),
        ("Which chopping boards?", content("cut", 4, "board", 2), "Which <MASK>?"),
        ("Which chopping?", content("take", 0, "board", 2), "Which chopping?"),
        ("The sauce pan or saucepan?", content("take", 0, "pan", 3), "The <MASK> or <MASK>?"),
        ("A cast iron pan?", content("take", 0, "pan", 3), "A <MASK>?"),
        ("The leaves?", content("take", 0, "leaf", 4), "The <MASK>?"),
        ("The <mask> knife, [MASK]?", TAKE_KNIFE, "The <MASK>, <MASK>?"),
        ("The knife's edge", TAKE_KNIFE, "The <MASK>'s edge"),
        ("taken, knife; KNIVES!", TAKE_KNIFE, "<MASK>, <MASK>; <MASK>!"),
    ],
)
def test_every_form_of_the_classes_words_is_masked_and_nothing_else(lexicon, text, about, expected):
    assert masked(lexicon, text, about) == (expected, expected)


def test_policy_paper_masks_the_noun_in_one_question_and_the_verb_in_the_other(lexicon):
    asked = masked(lexicon, "Who takes the knife?", TAKE_KNIFE, own=False)
    assert asked == ("Who takes the <MASK>?", "Who <MASK> the knife?")


def test_spans_are_places_in_the_text_as_it_was(lexicon):
    text = "Is the big tap turned on?"
    pair = mask_pair(text, text, TURN_TAP, lexicon, True)
    assert [text[a:b] for a, b, _ in pair.verb_question.spans] == ["tap turned on"]
    assert pair.verb_question.spans[0].kind == "both"
    assert (pair.own_verb, pair.own_noun, pair.cross) == (2, 1, 3)


def test_a_noun_that_heads_many_classes_is_masked_only_as_the_rows_own(tmp_path):
    bench.write_classes(tmp_path)
    file = tmp_path / "EPIC_100_noun_classes.csv"
    rows = bench.table(file)
    for row in rows[10:20]:
        row["instances"] = repr([row["key"], "piece:" + row["key"]])
    header = list(rows[0])
    bench.ek100_bench.write_csv(file, header, ([row[name] for name in header] for row in rows))
    lexicon = Lexicon(Classes.read(tmp_path))
    assert lexicon.shared == {"piece"}
    about = content("take", 0, "leaf", 4)
    assert masked(lexicon, "Which piece?", about)[0] == "Which piece?"
    assert masked(lexicon, "Which leaf piece?", about)[0] == "Which <MASK>?"
    own = content("take", 0, "piece:leaf", 4)
    assert masked(lexicon, "Which piece?", own)[0] == "Which <MASK>?"


def test_inflections_are_irregular_and_of_unknown_words_too():
    assert {"take", "takes", "took", "taken", "taking"} <= forms("take", "VERB")
    assert {"knife", "knives"} <= forms("knife", "NOUN")
    assert {"leaves", "leaf"} <= forms("leaves", "NOUN")
    assert {"debone", "deboned", "deboning"} <= forms("debone", "VERB")


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("Who takes it?", ["takes"]),
        ("Who TOOK-it?", ["took"]),
        ("Is it grabbed, perhaps?", ["grabbed"]),
        ("Who <MASK> it?", []),
        ("Who overtakes it?", []),
    ],
)
def test_a_word_of_the_class_that_is_left_is_a_literal_leak(lexicon, text, leaks):
    assert checks.literal_leaks(text, lexicon.verb(TAKE_KNIFE)) == leaks


def test_a_word_with_the_same_stem_is_a_near_leak(lexicon):
    vocabulary = lexicon.verb(content("wash", 2, "pan", 3))
    assert checks.near_leaks("Is the dishwasher <MASK>?", vocabulary) == ["dishwasher"]
    assert checks.near_leaks("Is the oven <MASK>?", vocabulary) == []


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("What now?", "2 words"),
        ("What " + "very " * 40 + "long?", "words"),
        ("The person puts it down.", "not a question"),
        ("Puts the person it down?", "not a question"),
        ("Что делает человек на кухне, what?", "not English"),
        ("Was macht die Person hier, what?", None),
        ("What does the person do with it?", None),
    ],
)
def test_what_is_no_english_question_of_usual_length_is_told(question, why):
    found = "; ".join(checks.form_problems(question))
    assert (why in found) if why else not found


def test_prompts_have_two_examples_that_are_answers_themselves_and_a_version_of_their_words():
    for step, inputs in (("describe", {"narration": "n"}),
                         ("ask", {"description": "d", "verb": "v", "noun": "n"})):  # fmt: skip
        one = prompt(step)
        assert len(one.text.shots) == 2
        assert all(one.read(shot.assistant) for shot in one.text.shots)
        told = one.messages(**inputs)
        assert [m["role"] for m in told] == ["system", *["user", "assistant"] * 2, "user"]
        assert set(one.schema["properties"]) == set(one.answer)
        assert len(one.sha256) == 64
    assert prompt("ask").sha256 != prompt("describe").sha256


def test_a_prompt_of_ones_own_has_another_version(tmp_path):
    for step in ("describe", "ask"):
        source = Path(template.__file__).parent / "prompts" / f"{step}.yaml"
        (tmp_path / f"{step}.yaml").write_text(source.read_text() + "# mine\n")
    assert prompt("ask", tmp_path).sha256 != prompt("ask").sha256
    (tmp_path / "ask.yaml").write_text("version: 1\n")
    prompt.cache_clear()
    with pytest.raises(ConfigError, match=r"ask.yaml.*is missing"):
        prompt("ask", tmp_path)
    with pytest.raises(ConfigError, match="no such prompt"):
        prompt("other", tmp_path)
    good = (Path(template.__file__).parent / "prompts" / "ask.yaml").read_text()
    for old, new, why in (
        (
            "[verb_question, noun_question]",
            "[verb_question]",
            "answer: verb_question, noun_question",
        ),
        ("Thing: {noun}", "Thing: {thing}", r"user: 'thing' is not known; there are {description}"),
    ):
        (tmp_path / "ask.yaml").write_text(good.replace(old, new))
        prompt.cache_clear()
        with pytest.raises(ConfigError, match=why):
            prompt("ask", tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        '{"verb_question": "A?", "noun_question": "B?"}',
        'Here it is:\n```json\n{"verb_question": "A?",\n "noun_question": "B?"}\n```\nDone.',
        '{"verb_question": "A?", "noun_question": "B?", "more": 1}',
    ],
)
def test_an_answer_is_found_in_what_stands_around_it(said):
    assert prompt("ask").read(said) == {"verb_question": "A?", "noun_question": "B?"}


@pytest.mark.parametrize(
    "said", ["", "no", '{"verb_question": "A?"', '{"verb_question": "A?", "noun_question": 3}',
             '{"verb_question": "A?", "noun_question": " "}', "[1]"]
)  # fmt: skip
def test_what_is_no_answer_is_none(said):
    assert prompt("ask").read(said) is None


def test_keys_are_said_as_people_say_them():
    assert in_words("pick-up", "verb") == "pick up"
    assert in_words("board:chopping", "noun") == "chopping board"
    assert in_words("pan:cast:iron", "noun") == "cast iron pan"


def test_rows_that_share_what_is_asked_about_share_their_questions(folder):
    rows = read_rows(folder / "annotations" / "EPIC_100_train.csv")
    groups = by_content(rows)
    assert len(rows) == 8 * len(TRAIN)
    assert len(groups) == len(bench.SAID)
    assert sum(map(len, groups.values())) == len(rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"verb_class": "97"}, "verb_class: '97' is not a class in 0..96"),
        ({"noun": " "}, "noun: is empty"),
        ({"start_timestamp": "1.5"}, "is not a time"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(folder, tmp_path, line, message):
    row = bench.table(folder / "annotations" / "EPIC_100_train.csv")[0]
    for file in (tmp_path / "rows.jsonl", tmp_path / "rows.csv"):
        if file.suffix == ".jsonl":
            file.write_text(json.dumps(row) + "\n" + json.dumps({**row, **line}) + "\n")
        else:
            lines = ([r[name] for name in row] for r in (row, {**row, **line}))
            bench.ek100_bench.write_csv(file, list(row), lines)
        with pytest.raises(ValueError, match=rf"rows.{file.suffix[1:]}:(2|3): .*") as told:
            read_rows(file)
        assert message.partition(": ")[2] in str(told.value)


# builds without a model


def build(folder, *words, out="q.jsonl"):
    return bench.harness(folder, "questions", "build", "--out", out, *words)


def test_templates_tell_as_much_as_their_level_and_never_leak(folder, tmp_path):
    for level, different in ((0, 1), (1, 5), (2, 3)):
        out = tmp_path / f"{level}.jsonl"
        done = build(folder, "--level", level, out=out)
        assert done.returncode == 0, done.stderr
        records = bench.read(out)
        assert [r["narration_id"] for r in records] == sorted(r["narration_id"] for r in records)
        assert len(records) == 8 * (len(TRAIN) + len(TEST))
        assert len({r["verb_question"] for r in records}) == different
        assert {r["provenance"]["model"] for r in records} == {f"level {level}"}
        assert "literal leaks: 0" in done.stdout
        assert files.asked_in(out).told == template.TOLD[level]
        assert len(bench.table(Path(f"{out}.csv"))) == len(records)
        assert "## Examples" in Path(f"{out}.report.md").read_text()
    again = tmp_path / "again.jsonl"
    assert build(folder, "--level", 2, out=again).returncode == 0
    assert again.read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_masking_again_asks_nothing_and_gives_what_a_build_gives(folder, tmp_path):
    strict, paper, again = (tmp_path / name for name in ("s.jsonl", "p.jsonl", "a.jsonl"))
    assert build(folder, out=strict).returncode == 0
    assert build(folder, "--policy", "paper", out=paper).returncode == 0
    done = bench.harness(folder, "questions", "mask", strict, "--policy", "paper", "--out", again)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == paper.read_bytes()
    refused = bench.harness(folder, "questions", "mask", strict, "--out", again)
    assert refused.returncode == 2
    assert "is there already" in refused.stderr


def test_replayed_questions_are_masked_and_those_that_lack_are_failed_rows(folder, tmp_path):
    rows = read_rows(folder / "annotations" / "EPIC_100_validation.csv")
    earlier = tmp_path / "earlier.jsonl"
    kept = [row for row in rows if row.content.verb_class != 4]
    earlier.write_text(
        "".join(
            json.dumps({"narration_id": row.narration_id,
                        "verb_question": f"What is done to the {row.content.noun.split(':')[0]}?",
                        "noun_question": f"What do they {row.content.verb.split('-')[0]} here?"})
            + "\n" for row in kept
        )
    )  # fmt: skip
    out = tmp_path / "q.jsonl"
    validation = folder / "annotations" / "EPIC_100_validation.csv"
    done = build(folder, validation, "--backend", "replay", "--replay", earlier, out=out)
    assert done.returncode == 1
    assert {r["verb_question"] for r in bench.read(out)} == {"What is done to the <MASK>?"}
    failed = bench.read(Path(f"{out}.failed.jsonl"))
    assert len(bench.read(out)) + len(failed) == len(rows)
    assert {row["why"] for row in failed} == {"no questions to it in the file"}


def test_a_file_made_otherwise_is_not_replaced(folder, tmp_path):
    out = tmp_path / "q.jsonl"
    assert build(folder, out=out).returncode == 0
    before = out.read_bytes()
    refused = build(folder, "--level", 1, out=out)
    assert refused.returncode == 2
    assert "was made otherwise (model was 'level 2', is 'level 1'" in refused.stderr
    assert out.read_bytes() == before
    assert build(folder, "--level", 1, "--overwrite", out=out).returncode == 0
    out.write_text("not questions\n")
    refused = build(folder, out=out)
    assert refused.returncode == 2
    assert "not a record" in refused.stderr


def test_a_literal_leak_fails_the_build_and_writes_no_questions(folder, tmp_path, monkeypatch):
    from harness.questions import records, session

    monkeypatch.chdir(folder)
    monkeypatch.setattr(records, "mask_pair", lambda v, n, c, lexicon, own: mask_pair(
        v, n, c, Lexicon(Classes.read(folder / "annotations")), False))  # fmt: skip
    options = {"rows": None, "out": tmp_path / "q.jsonl", "backend": "template", "level": 2,
               "policy": "strict", "model": "", "replay": None, "price_in": None,
               "price_out": None, "max_cost": None, "task": "recognition", "describe": "target",
               "predictions": None, "shard": "", "annotations": None, "overwrite": False,
               "allow_leak": False, "limit": None, "dry_run": False, "jobs": 1,
               "ahead": 1.0}  # fmt: skip
    with pytest.raises(ConfigError, match=r"still say their answer, e\.g\. P01_01_0: take"):
        session.Session(session.Wanted.checked(options)).run()
    assert not (tmp_path / "q.jsonl").exists()
    assert "## Literal leaks" in (tmp_path / "q.jsonl.report.md").read_text()


def test_a_smaller_build_does_not_take_the_place_of_a_larger_one(folder, tmp_path):
    out = tmp_path / "q.jsonl"
    assert build(folder, out=out).returncode == 0
    before = out.read_bytes()
    validation = folder / "annotations" / "EPIC_100_validation.csv"
    for words in (["--limit", 1], [validation]):
        refused = build(folder, *words, out=out)
        assert refused.returncode == 2
        assert "rows would be lost" in refused.stderr
        assert out.read_bytes() == before
    assert build(folder, validation, "--overwrite", out=out).returncode == 0
    assert len(bench.read(out)) == 16
    assert build(folder, out=out).returncode == 0  # a larger one adds to it
    assert out.read_bytes() == before


def test_what_is_replayed_keeps_who_wrote_it_and_truth_is_not_replayed_as_predicted(
    folder, tmp_path
):
    for level, told in ((0, "no label information"), (2, "masked narration")):
        first, again = tmp_path / f"{level}.jsonl", tmp_path / f"again{level}.jsonl"
        assert build(folder, "--level", level, out=first).returncode == 0
        words = ("--backend", "replay", "--replay", first)
        assert build(folder, *words, out=again).returncode == 0
        assert files.asked_in(again).told == f"template questions: {told}"
    rows = read_rows(folder / "annotations" / "EPIC_100_validation.csv")
    writer = writers.Replay([tmp_path / "2.jsonl"])
    asked = rows[0].content._replace(label_source="predicted")
    (why,) = writer.candidates(asked, rows[:1], False)
    assert why == "the file's question is made from labels of ground_truth"
    other = rows[0].content._replace(verb_class=90)
    (why,) = writer.candidates(other, rows[:1], False)
    assert why == "the file's question is about another verb class"
    (good,) = writer.candidates(rows[0].content, rows[:1], False)
    assert good.verb_question.startswith("What is done here")


def test_each_replayed_row_has_its_own_question(folder, tmp_path):
    validation = folder / "annotations" / "EPIC_100_validation.csv"
    rows, earlier, out = read_rows(validation), tmp_path / "e.jsonl", tmp_path / "q.jsonl"
    asked = [
        {"narration_id": row.narration_id, "verb_question": f"What is done, {number}?",
         "noun_question": f"What is it, {number}?"} for number, row in enumerate(rows)
    ]  # fmt: skip
    earlier.write_text("".join(json.dumps(one) + "\n" for one in asked))
    words = (validation, "--backend", "replay", "--replay", earlier)
    assert build(folder, *words, out=out).returncode == 0
    assert len({record["verb_question"] for record in bench.read(out)}) == len(rows)


def test_each_replayed_row_of_predictions_stands_alone_too(folder, tmp_path, monkeypatch):
    from harness.questions import session

    monkeypatch.chdir(folder)
    rows = read_rows(folder / "annotations" / "EPIC_100_validation.csv")
    given = {"rows": None, "predictions": ["r"], "task": "recognition", "ahead": 1.0,
             "describe": "target", "backend": "replay", "annotations": None,
             "out": tmp_path / "q.jsonl", "allow_leak": False}  # fmt: skip
    monkeypatch.setattr("harness.cli_evaluate.runs_named", lambda names: [])
    monkeypatch.setattr("harness.questions.predicted.rows_from", lambda found, *more: found)
    made = session.Session(session.Wanted(given, 0, 1, "strict"))
    assert len({row.content.alone for row in made.rows}) == len(made.rows) > len(rows)


def test_a_leak_that_was_allowed_is_replayed_as_one(folder, tmp_path):
    leaking, again = tmp_path / "l.jsonl", tmp_path / "a.jsonl"
    words = ("--task", "anticipation", "--allow-leak")
    assert build(folder, *words, out=leaking).returncode == 0
    assert build(folder, "--backend", "replay", "--replay", leaking, out=again).returncode == 0
    assert files.asked_in(again).allow_leak


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verb_class": 97}, "P01_01_0: verb_class: 97 is not a class in 0..96"),
        ({"verb_class": "3"}, "holds no verb_class"),
        ({"noun_question_raw": 3}, "holds no noun_question_raw"),
        ({"narration_id": ["x"]}, "one.jsonl:1: not a record with narration_id"),
        ({"provenance": None}, None),
        ({"verb_question": "What\u2028now?"}, None),
    ],
)
def test_an_odd_record_is_masked_or_named(folder, tmp_path, change, message):
    made = folder / "odd.jsonl"
    if not made.exists():
        assert build(folder, out=made).returncode == 0
    record = {**bench.read(made)[0], **change}
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(record, ensure_ascii=False) + "\n")
    done = bench.harness(folder, "questions", "mask", file, "--out", tmp_path / "out.jsonl")
    assert done.returncode == (2 if message else 0), done.stderr
    assert (message or "") in done.stderr
    assert "Traceback" not in done.stderr


def test_segments_before_which_nothing_was_seen_can_be_masked_too(lexicon):
    from harness.questions.records import masked_again

    record = {"narration_id": "a", "verb_answer": "", "noun_answer": "", "verb_class": -1,
              "noun_class": -1, "verb_question_raw": "What is done here?",
              "noun_question_raw": "Which object is meant here?"}  # fmt: skip
    (again,) = masked_again([record], lexicon, "paper").records
    assert again["verb_question"] == "What is done here?"


def test_letters_that_cannot_be_seen_or_written_do_not_hide_a_word(lexicon):
    for said in (
        "kni\u200bfe",
        "kn\u00adife",
        "\uff4b\uff4e\uff49\uff46\uff45",
        "kni\ufb01e"[:3] + "fe",
    ):
        one = writers.Candidate(f"Which {said}?", "x \ud83d y")
        assert masked(lexicon, one.verb_question, TAKE_KNIFE)[0] == "Which <MASK>?"
        one.noun_question.encode()


@REAL
def test_a_word_with_digits_is_masked_and_found():
    classes = Classes.read(SHARED)
    lexicon = Lexicon(classes)
    number = next(n for n, one in enumerate(classes.nouns) if "v60" in one.instances)
    about = content("take", 0, classes.nouns[number].key, number)
    assert masked(lexicon, "Is it the V60, now?", about)[0] == "Is it the <MASK>, now?"
    assert masked(lexicon, "Is it av60?", about)[0] == "Is it av60?"
    assert checks.literal_leaks("Is it the v60?", lexicon.noun(about)) == ["v60"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "opnai"], "--backend: unknown value 'opnai'. Did you mean 'openai'"),
        (["--level", 3], "--level: 3 is none of 0, 1, 2"),
        (["--backend", "openai"], "--model: is missing"),
        (["--backend", "replay"], "--replay: FILE goes with"),
        (["--backend", "replay", "--replay", "nowhere"], "nowhere: no such file"),
        (["--max-cost", 3], "needs --price-in and --price-out"),
        (["--shard", "0/2"], "--backend template has no work to share out"),
        (["--shard", "2/2"], "--shard: '2/2' is not i/n"),
        (["--shard", "x"], "--shard: 'x' is not i/n"),
        (["--describe", "observed"], "is for --task anticipation"),
        (["--task", "anticipation"], "true labels are what is to be anticipated"),
        (["nowhere.csv"], "nowhere.csv: no such file of segments"),
        (["--annotations", "nowhere"], "no EPIC_100_verb_classes.csv"),
        (["--predictions", "nowhere"], "nowhere: no such file, and no run begins so"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(folder, tmp_path, words, message):
    out = tmp_path / "q.jsonl"
    done = build(folder, *words, out=out)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_a_site_file_it_is_said_where_the_annotations_are_to_be_named(tmp_path):
    done = bench.harness(tmp_path, "questions", "build")
    assert done.returncode == 2
    assert "give their folder, or write `data: {ek100: {annotations: DIR}}`" in done.stderr


# the real annotations


@REAL
def test_on_the_real_validation_rows_no_template_leaks_and_every_row_is_there(tmp_path):
    out = tmp_path / "q.jsonl"
    done = bench.harness(tmp_path, "questions", "build", SHARED / "EPIC_100_validation.csv",
                   "--annotations", SHARED, "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = bench.read(out)
    assert len(records) == 9668
    assert "literal leaks: 0" in done.stdout
    assert "3,858 of them different" in done.stderr


@REAL
def test_no_fixed_word_of_a_template_is_a_form_of_a_real_class():
    classes = Classes.read(SHARED)
    lexicon, nothing = Lexicon(classes), "ground_truth"
    for number, verb in enumerate(classes.verbs):
        for noun_number in (number, 97 + number, 194 + number):
            noun = classes.nouns[noun_number]
            about = Content("", verb.key, number, noun.key, noun_number, nothing)
            asked = [template.questions(about, 0, classes), template.categories(about, classes)]
            asked += [template.questions(about._replace(narration="..."), 2, classes)]
            for one in asked:
                for vocabulary in (lexicon.verb(about), lexicon.noun(about)):
                    assert not mentions(one.verb_question, vocabulary, "")
                    assert not mentions(one.noun_question, vocabulary, "")


def test_words_and_marks_are_told_apart():
    found = [word.text for word in words_of("It's <MASK>-like, 3 knives [mask]")]
    assert found == ["it", "s", "<mask>", "like", "knives", "[mask]"]
    assert hide("a <mask>", []).text == "a <MASK>"
    assert hide("a <mask>", []).spans == ()


def test_shuffled_questions_are_a_permutation_without_a_fixed_point():
    names = [f"n{number}" for number in range(50)]
    moved = files.shuffled(names, 0)
    assert sorted(moved.values()) == sorted(names)
    assert all(moved[name] != name for name in names)
    assert np.array_equal(list(files.shuffled(names, 0)), list(moved))
