"""SimKitchen's items: the same everywhere, silent where they must be, as frequent as promised."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import DataLoader, Subset

from harness.data.simkitchen import render, world
from harness.data.simkitchen.questions import SIDE_WORDS, wording, write
from harness.data.simkitchen.world import NO_MOTION, NOUNS, VERBS, WorldConfig, draw, targets
from harness.registry import DATASETS

SIZES = {"train_size": 4096, "select_size": 64, "test_size": 4096}
MANY = 100_000


def simkitchen(**options):
    cls = DATASETS["simkitchen"]
    return cls(cls.Config.model_validate(SIZES | options))


def items_of(count: int, **options) -> world.Items:
    return draw(WorldConfig(**options), 1, np.arange(count))


def texts_of(count: int, **options) -> list[str]:
    config = WorldConfig(**options)
    items = draw(config, 1, np.arange(count))
    return write(config, 1, wording(config, items, count))


def look(sample):
    return (
        *(sample.id, sample.streams["text"], tuple(sample.targets.items()), sample.subset),
        sample.streams["video"].numpy().tobytes(),
        sample.side["video"]["boxes"].numpy().tobytes(),
    )


def close(hits: np.ndarray, share: float) -> bool:
    """Whether a frequency is within 4 standard errors of what it should be."""
    return abs(hits.mean() - share) <= 4 * np.sqrt(share * (1 - share) / len(hits)) + 1e-12


@pytest.mark.parametrize("questions", ["ground_truth", "shuffled", "predicted"])
def test_an_item_is_the_same_in_any_batch_and_order(questions):
    split = simkitchen(questions=questions).split("train")
    alone = [look(split[index]) for index in range(40)]
    order = np.random.default_rng(0).permutation(40)
    together = split.__getitems__(order.tolist())
    assert [look(sample) for sample in together] == [alone[index] for index in order]


def test_an_item_is_the_same_in_any_worker():
    split = simkitchen().split("test")
    first = Subset(split, range(40))
    loader = DataLoader(first, batch_size=5, num_workers=2, collate_fn=looks)
    assert [row for batch in loader for row in batch] == [look(split[index]) for index in range(40)]


def looks(samples):
    return [look(sample) for sample in samples]


def test_splits_and_seeds_have_items_of_their_own():
    samples = {
        look(simkitchen(seed=seed).split(name)[0])[4:]
        for seed in (0, 1)
        for name in ("train", "select", "test")
    }
    assert len(samples) == 6


def test_streams_targets_and_sizes_are_as_promised():
    dataset = simkitchen()
    sample = dataset.split("select")[7]
    assert tuple(sample.streams["video"].shape) == dataset.streams["video"].shape
    assert sample.streams["video"].dtype == torch.uint8
    assert len(sample.streams["text"].split()) <= dataset.streams["text"].shape[0]
    assert sample.targets.keys() == dataset.targets.keys() == {"verb", "noun"}
    assert sample.id == "select-7"
    assert sample.side["video"]["boxes"].shape == (8, 4, 4)
    assert [len(dataset.split(name)) for name in ("train", "select", "test")] == [4096, 64, 4096]


def test_what_is_not_there_is_refused():
    with pytest.raises(IndexError, match="item 64 of the 64"):
        simkitchen().split("select")[64]
    with pytest.raises(ValueError, match="not 'validation'"):
        simkitchen().split("validation")
    with pytest.raises(ValidationError, match="cue_window"):
        WorldConfig(cue_window=(3, 3))


def test_look_alikes_are_identical_to_the_pixel():
    items = items_of(200)
    other = replace(items, manner=1 - items.manner, domain=(items.domain + 1) % 3)
    assert (other.verb != items.verb).all()
    assert (other.noun != items.noun).all()
    np.testing.assert_array_equal(render.clips(items), render.clips(other))
    np.testing.assert_array_equal(render.boxes(items), render.boxes(other))


@pytest.mark.parametrize("questions", ["ground_truth", "predicted", "constant", "none"])
def test_questions_do_not_depend_on_motion_or_sprite(questions):
    config = WorldConfig(questions=questions)
    items = items_of(2000)
    motion = np.where(items.motion == NO_MOTION, NO_MOTION, (items.motion + 1) % 4)
    other = replace(items, motion=motion, sprite=(items.sprite + 2) % 4)
    assert (other.verb != items.verb).all()
    first = write(config, 1, wording(config, items, 2000))
    assert write(config, 1, wording(config, other, 2000)) == first


@pytest.mark.parametrize("questions", ["ground_truth", "shuffled", "predicted", "constant"])
def test_masked_words_never_occur(questions):
    said = {word for text in texts_of(5000, questions=questions) for word in text.split()}
    assert "<mask>" in said
    assert not said & {*VERBS, *NOUNS}


def test_without_masks_each_question_says_the_others_word():
    items = items_of(2000)
    for row, text in enumerate(texts_of(2000, mask=False)):
        verb_question, noun_question = text.split(" </s> ")
        assert NOUNS[items.noun[row]] in verb_question.split()
        assert VERBS[items.verb[row]] in noun_question.split()


def test_questions_have_52_words_and_fit_the_stream():
    texts = [text.split() for text in texts_of(20_000)]
    assert len({word for text in texts for word in text}) == 52
    assert max(map(len, texts)) == 43
    assert np.mean([len(text) for text in texts]) == pytest.approx(31, abs=0.5)


def test_shuffled_questions_are_those_of_other_items():
    truth = texts_of(2000)
    config = WorldConfig(questions="shuffled")
    said = wording(config, items_of(2000), 2000)
    assert (said.index != np.arange(2000)).all()
    assert len(np.unique(said.index)) > 1000
    assert write(config, 1, said) == [truth[index] for index in said.index]


def test_constant_questions_are_one_and_no_questions_are_empty():
    assert len(set(texts_of(100, questions="constant"))) == 1
    assert set(texts_of(100, questions="none")) == {""}


def test_boxes_contain_the_drawn_pixels():
    items = items_of(300)
    background, noise = render.scenery(items)
    drawn = (render.clips(items) != background + noise).any(axis=-1)
    inside = np.zeros_like(drawn)
    boxes = (render.boxes(items) * render.SIZE).round().astype(int)
    for n, t, o in np.ndindex(boxes.shape[:3]):
        left, top, right, bottom = boxes[n, t, o]
        inside[n, t, top:bottom, left:right] = True
        present = o >= 2 or items.motion[n, o] != NO_MOTION
        assert drawn[n, t, top:bottom, left:right].any() == present
    assert not (drawn & ~inside).any()


def test_boxes_lie_in_the_frame_and_absent_hands_have_none():
    items = items_of(500)
    boxes = render.boxes(items)
    assert boxes.min() == 0
    assert boxes.max() <= 1
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    hands = boxes[:, :, :2].any(axis=(1, 3))
    np.testing.assert_array_equal(hands, items.motion != NO_MOTION)
    assert (hands.sum(axis=1) == np.where(items.two, 2, 1)).all()


def test_outside_the_cue_window_nothing_tells_what_is_held():
    items = items_of(200)
    other = replace(
        items, sprite=np.where(items.motion == NO_MOTION, items.sprite, (items.sprite + 1) % 4)
    )
    first, second = render.clips(items, (2, 5)), render.clips(other, (2, 5))
    np.testing.assert_array_equal(first[:, [0, 1, 5, 6, 7]], second[:, [0, 1, 5, 6, 7]])
    assert (first[:, 2:5] != second[:, 2:5]).any(axis=(2, 3, 4)).all()


@pytest.mark.parametrize("rho", [0, 0.3, 1])
def test_two_handed_clips_are_as_frequent_as_rho(rho):
    assert close(items_of(MANY, rho=rho).two, rho)


def test_actions_and_sides_are_uniform_and_two_handed_halves_differ():
    items = items_of(MANY)
    for two in (False, True):
        part = items.two == two
        pairs = np.bincount((items.verb * 12 + items.noun)[part], minlength=96)
        assert len(pairs) == 96
        assert all(close((items.verb == verb)[part], 1 / 8) for verb in range(8))
        assert all(close((items.noun == noun)[part], 1 / 12) for noun in range(12))
        assert abs(pairs / pairs.sum() - 1 / 96).max() < 5 * np.sqrt(1 / 96 / pairs.sum())
        assert close(items.side[part], 0.5)
    assert (items.motion[:, 0] != items.motion[:, 1]).all()
    assert (items.sprite[:, 0] != items.sprite[:, 1]).all()


@pytest.mark.parametrize("u", [0, 0.1, 1])
def test_cues_are_dropped_as_often_as_said(u):
    config = WorldConfig(cue_dropped=u)
    said = wording(config, items_of(MANY), MANY)
    texts = write(config, 1, said)
    assert close(said.manner == 2, u)
    assert close(said.domain == 3, u)
    assert close((said.manner == 2) & (said.domain == 3), u * u)
    np.testing.assert_array_equal(["somehow" in text for text in texts], said.manner == 2)
    np.testing.assert_array_equal(["used here" in text for text in texts], said.domain == 3)


@pytest.mark.parametrize("kappa", [0, 0.5, 0.8, 1])
def test_cues_are_contrasted_as_often_as_kappa(kappa):
    config = WorldConfig(contrast=kappa)
    said = wording(config, items_of(20_000), 20_000)
    cues = (said.manner < 2).sum() + (said.domain < 3).sum() + 2 * (said.side < 2).sum()
    words = " ".join(write(config, 1, said)).split()
    rather, negated = words.count("rather"), words.count("not")
    assert close(np.arange(cues) < rather + negated, kappa)
    assert rather + negated == 0 or close(np.arange(rather + negated) < rather, 0.5)


def test_predicted_questions_are_right_as_often_as_said():
    config = WorldConfig(questions="predicted", cue_dropped=0, q_v=0.7, q_n=0.6, q_p=0.9)
    items = items_of(MANY)
    said = wording(config, items, MANY)
    assert close(said.manner == items.manner, 0.7)
    assert close(said.domain == items.domain, 0.6)
    assert all(close((said.domain - items.domain) % 3 == wrong, 0.2) for wrong in (1, 2))
    assert close((said.side == items.side)[items.two], 0.9)
    assert (said.side[~items.two] == 2).all()


@pytest.mark.parametrize("eps", [0, 0.2])
def test_labels_are_as_noisy_as_eps(eps):
    items = items_of(MANY)
    given = targets(WorldConfig(label_noise=eps), items)
    verb, noun = given["verb"] != items.verb, given["noun"] != items.noun
    assert close(verb, eps * 7 / 8)
    assert close(noun, eps * 11 / 12)
    assert close(verb & noun, eps * 7 / 8 * eps * 11 / 12)


def test_anticipation_asks_for_the_next_action_of_the_same_clip_and_question():
    now = simkitchen().split("test").__getitems__(range(50))
    then = simkitchen(task="anticipation").split("test").__getitems__(range(50))
    for a, b in zip(now, then, strict=True):
        assert torch.equal(a.streams["video"], b.streams["video"])
        assert a.streams["text"] == b.streams["text"]
    items = items_of(MANY)
    given = targets(WorldConfig(task="anticipation"), items)
    assert close(given["verb"] == (3 * items.verb + 5) % 8, 0.7)
    assert close(given["noun"] == items.noun, 0.6)
    assert close(given["noun"] == (5 * items.noun + 1) % 12, 0.3)


def test_perception_labels_name_what_is_shown_and_said():
    dataset = simkitchen(targets="perception")
    samples = dataset.split("train").__getitems__(range(500))
    for sample in samples:
        label, text = sample.targets, sample.streams["text"]
        assert label.keys() == dataset.targets.keys()
        assert all(0 <= label[name] < classes for name, classes in dataset.targets.items())
        still = [label["left_motion"], label["right_motion"]].count(NO_MOTION)
        assert still == (sample.subset == "one_handed")
        assert (label["side"] == 2) == (sample.subset == "one_handed")
        for phrase in re.findall(r"on the (?!<mask>)([a-z ]+?) side", text):
            meant = phrase.split()[-1 if phrase.startswith("not") else 0]
            assert meant in SIDE_WORDS[label["side"]]
        assert (label["manner"] == 2) == ("somehow" in text)
    assert set(dataset.ceilings()) == {"video", "text", "joint"}


def test_the_fingerprint_changes_with_the_config_and_with_the_renderer(monkeypatch):
    digest = simkitchen().fingerprint()
    assert simkitchen().fingerprint() == digest
    changes = ({"seed": 1}, {"rho": 0.4}, {"train_size": 32}, {"targets": "perception"})
    assert len({digest, *(simkitchen(**change).fingerprint() for change in changes)}) == 5
    monkeypatch.setattr(render, "SKIN", (201, 150, 115))
    assert simkitchen().fingerprint() != digest


def test_the_dataset_knows_its_ceilings():
    ceilings = simkitchen().ceilings()
    assert set(ceilings) == {"video", "text", "additive", "joint"}
    for metrics in ceilings.values():
        for target in ("verb", "noun", "action"):
            for k in (1, 5):
                for suffix in ("", "[one_handed]", "[two_handed]"):
                    assert 0 < metrics[f"{target}_top{k}{suffix}"] <= 1 + 1e-9
