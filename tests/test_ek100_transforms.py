"""EK100 clips: cropped, flipped and augmented as published, and the boxes with them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as pixels

from harness.data.ek100.augment import FILL, GEOMETRIC, VALUES, Operation, apply, draw_operations
from harness.data.ek100.crop import Crop
from harness.data.ek100.transforms import RECIPES, View, draw

SIZE = 112
SOURCES = [(456, 256), (256, 456), (340, 340), (1920, 1080)]
STRONG = [Operation(name, VALUES[name](0.7, sign)) for name in GEOMETRIC for sign in (-1, 1)]


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def smooth(frames: int, size: int, seed: int = 0) -> torch.Tensor:
    """uint8 (T, size, size, 3) without sharp edges; values from 20 to 235 in every frame."""
    coarse = torch.rand(frames, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    low, high = fine.amin((1, 2, 3), keepdim=True), fine.amax((1, 2, 3), keepdim=True)
    return (20 + 215 * (fine - low) / (high - low)).byte().permute(0, 2, 3, 1).contiguous()


def painted(source: tuple[int, int], box: np.ndarray) -> torch.Tensor:
    """A blue frame with a red rectangle where `box` is: uint8 (1, H, W, 3)."""
    width, height = source
    frame = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    frame[..., 2] = 255
    x0, y0, x1, y1 = (box * [width, height, width, height]).round().astype(int)
    frame[:, y0:y1, x0:x1] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    return frame


def decoded(view: View, frames: torch.Tensor) -> torch.Tensor:
    """What a decoder hands on: cut out and scaled."""
    x, y, width, height = view.crop
    cut = pixels.resized_crop(
        frames.permute(0, 3, 1, 2), y, x, height, width, [view.size, view.size], antialias=True
    )
    return cut.permute(0, 2, 3, 1)


def red(clip: torch.Tensor) -> np.ndarray | None:
    """Corners of the red area, in pixels: half red, half blue or grey is its edge."""
    found = (clip[0, ..., 0].int() - clip[0, ..., 1].int() > 127).nonzero()
    if not len(found):
        return None
    (y0, x0), (y1, x1) = found.amin(0).tolist(), found.amax(0).tolist()
    return np.array([x0, y0, x1 + 1, y1 + 1], float)


@st.composite
def seen(draw_value) -> tuple[View, np.ndarray]:
    """A view to train on, and a box in whole pixels of the source."""
    source = draw_value(st.sampled_from(SOURCES))
    recipe = draw_value(st.sampled_from(list(RECIPES)))
    view = draw(recipe, source, SIZE, rng(draw_value(st.integers(0, 10**6))))
    view = replace(view, operations=(), flip=draw_value(st.booleans()))
    share = st.integers(0, 256)
    x0, x1 = sorted((draw_value(share), draw_value(share)))
    y0, y1 = sorted((draw_value(share), draw_value(share)))
    whole = np.array([*source, *source])
    return view, (np.array([x0, y0, x1, y1]) / 256 * whole).round() / whole


def look(view: View, box: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The box as it is said to be, and as it is found in the picture, in pixels."""
    said = view.boxes(box[None, None])[0, 0] * view.size
    return said, red(view.pixels(decoded(view, painted(view.source, box))))


@settings(max_examples=100, deadline=None)
@given(seen(), st.sampled_from([None, *STRONG]))
def test_a_box_is_where_its_object_is_after_crop_flip_and_every_shift(seen, operation):
    view, box = seen
    if operation is not None and "translate" in operation.name:
        view = replace(view, operations=(operation,))
    said, found = look(view, box)
    if not said.any():
        assert found is None or (found[2:] - found[:2]).min() <= 0.05 * view.size + 3
    else:
        np.testing.assert_allclose(found, said, atol=1.6)


@settings(max_examples=150, deadline=None)
@given(seen(), st.lists(st.sampled_from(STRONG), min_size=1, max_size=3))
def test_a_box_holds_what_is_left_of_its_object_after_any_operations(seen, operations):
    view, box = seen
    view = replace(view, operations=tuple(operations))
    said, found = look(view, box)
    if said.any() and found is not None:
        assert (found[:2] >= said[:2] - 2).all()
        assert (found[2:] <= said[2:] + 2).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("operation", STRONG, ids=lambda o: f"{o.name} {o.value:.2f}")
def test_a_box_fits_its_object_where_the_object_stays_in_the_frame(operation, flip):
    view = View((400, 300), 200, Crop(60, 20, 240, 240), (operation,), flip)
    box = np.array([155, 120, 210, 170]) / [400, 300, 400, 300]
    said, found = look(view, box)
    assert (said > 5).all(), "the object is cut, so the test shows less"
    assert (said < 195).all()
    np.testing.assert_allclose(found, said, atol=2.5)


def test_a_flip_exchanges_left_and_right_exactly():
    box = np.array([[[0.125, 0.25, 0.5, 0.75], [0, 0, 0, 0]]])
    view = View((64, 64), 64, Crop(0, 0, 64, 64), flip=True)
    np.testing.assert_array_equal(view.boxes(box), [[[0.5, 0.25, 0.875, 0.75], [0, 0, 0, 0]]])
    clip = smooth(2, 64)
    np.testing.assert_array_equal(view.pixels(clip), clip.numpy()[:, :, ::-1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["correct", "orvit_release"]))
def test_boxes_are_in_the_frame_large_enough_or_absent_and_absent_ones_stay_so(seed, rule):
    given_boxes = np.sort(rng(seed).random((5, 3, 2, 2)), axis=2).reshape(5, 3, 4)
    given_boxes[1:3, 1] = 0
    view = draw("orvit", (456, 256), SIZE, rng(seed, 1))
    result = view.boxes(given_boxes.astype(np.float32), rule)
    assert result.dtype == np.float32
    assert result.shape == (5, 3, 4)
    assert ((result >= 0) & (result <= 1)).all()
    sides = result[..., 2:] - result[..., :2]
    assert ((sides > 0.0499).all(-1) | ~result.any(-1)).all()
    assert not result[1:3, 1].any()


def test_the_released_rule_loses_the_boxes_but_in_the_first_of_several_tested_views():
    boxes = np.array([[[0.1, 0.2, 0.5, 0.6], [0.6, 0.1, 0.95, 0.7], [0, 0, 0, 0]]])
    for source in [(456, 256), (1920, 1080)]:
        first = draw("orvit", source, 336, view=(0, 3)).boxes(boxes, "orvit_release")
        np.testing.assert_allclose(first, (boxes * 336 / 256).clip(0, 1), rtol=1e-6)
        for view in [(1, 3), (2, 3), (0, 1)]:
            tested = draw("orvit", source, 336, view=view)
            assert not tested.boxes(boxes, "orvit_release").any()
            assert tested.boxes(boxes).any()
        trained = [draw("orvit", source, 336, rng(n)) for n in range(300)]
        left = [view.boxes(boxes, "orvit_release").any() for view in trained]
        assert np.mean(left) <= 0.02
        assert np.mean([view.boxes(boxes).any() for view in trained]) > 0.9


def test_views_are_places_of_the_square_of_the_short_side():
    for recipe in RECIPES:
        crops = [draw(recipe, (456, 256), 224, view=(n, 3)).crop for n in range(3)]
        assert crops == [(0, 0, 256, 256), (100, 0, 256, 256), (200, 0, 256, 256)]
        assert draw(recipe, (456, 256), 224).crop == crops[1]
        assert draw(recipe, (300, 501), 224, view=(1, 3)).crop == (0, 101, 300, 300)
        assert draw(recipe, (300, 501), 224, view=(2, 3)).crop == (0, 201, 300, 300)
        tested = draw(recipe, (456, 256), 224)
        assert (tested.operations, tested.flip) == ((), False)


def many(recipe, source=(456, 256), size=224, count=1500) -> list[View]:
    return [draw(recipe, source, size, rng(7, n)) for n in range(count)]


def inside(view: View) -> bool:
    x, y, width, height = view.crop
    right, lower = x + width <= view.source[0], y + height <= view.source[1]
    return x >= 0 and y >= 0 and right and lower and width > 0 and height > 0


@pytest.mark.parametrize("recipe", RECIPES)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 400), st.integers(0, 10**6))
def test_a_crop_lies_in_any_frame(recipe, width, height, size, seed):
    assert inside(draw(recipe, (width, height), size, rng(seed)))
    assert all(inside(draw(recipe, (width, height), size, view=(n, 3))) for n in range(3))


@pytest.mark.parametrize(("size", "low", "high"), [(224, 256, 320), (336, 384, 480)])
def test_orvit_scales_the_short_side_and_cuts_a_square_anywhere(size, low, high):
    views = many("orvit", source=(1824, 1024), size=size)
    scaled = [size * 1024 / view.crop.width for view in views]
    assert all(view.crop.width == view.crop.height for view in views)
    assert low - 0.5 <= min(scaled) < low + 2
    assert high - 2 < max(scaled) <= high + 0.5
    assert np.mean(scaled) == pytest.approx((low + high) / 2, rel=0.01)
    across = [view.crop.x / (1824 - view.crop.width) for view in views]
    down = [view.crop.y / (1024 - view.crop.height) for view in views]
    for places in (across, down):
        assert np.quantile(places, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.05)
    assert np.mean([view.flip for view in views]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("recipe", "flips"), [("clip", 0.0), ("lavila", 0.5)])
def test_clip_and_lavila_cut_a_part_of_the_area_and_only_lavila_flips(recipe, flips):
    views = many(recipe, source=(512, 512))
    areas = np.array([view.crop.width * view.crop.height for view in views]) / 512**2
    ratios = np.array([view.crop.width / view.crop.height for view in views])
    assert 0.49 < areas.min() < 0.52
    assert areas.max() > 0.95
    assert 0.74 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 1.35
    assert np.median(ratios) == pytest.approx(1, abs=0.03), "narrow is as likely as wide"
    assert np.mean([view.flip for view in views]) == pytest.approx(flips, abs=0.05 * (flips > 0))
    assert not any(view.operations for view in views)


def test_a_frame_in_which_no_part_fits_gives_the_middle():
    assert draw("clip", (4000, 90), 224, rng(0)).crop == (1940, 0, 120, 90)
    assert draw("clip", (90, 4000), 224, rng(0)).crop == (0, 1940, 90, 120)


def test_without_augmentation_training_sees_what_is_tested():
    assert draw("none", (456, 256), 224, rng(3)) == draw("none", (456, 256), 224)


@pytest.mark.parametrize("recipe", ["orvit", "clip", "lavila"])
def test_the_same_generator_gives_the_same_view_and_another_another(recipe):
    views = [draw(recipe, (456, 256), 224, rng(1, 2, n)) for n in range(50)]
    assert views == [draw(recipe, (456, 256), 224, rng(1, 2, n)) for n in range(50)]
    assert len({view.crop for view in views}) > 40


def test_views_depend_on_no_other_generator():
    np.random.seed(0)
    torch.manual_seed(0)
    view = draw("orvit", (456, 256), SIZE, rng(11))
    first = replace(view, operations=tuple(STRONG)).pixels(smooth(2, SIZE))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert draw("orvit", (456, 256), SIZE, rng(11)) == view
    again = replace(view, operations=tuple(STRONG)).pixels(smooth(2, SIZE))
    assert torch.equal(first, again)
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_four_operations_are_drawn_and_half_of_them_done():
    drawn = [draw_operations(rng(5, n)) for n in range(3000)]
    counts = Counter(len(operations) for operations in drawn)
    shares = [counts[n] / 3000 for n in range(5)]
    assert shares == pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.03)
    names = Counter(name for operations in drawn for name, _ in operations)
    assert names.keys() == VALUES.keys()
    assert np.array(list(names.values())) / 6000 == pytest.approx([1 / 15] * 15, abs=0.015)
    twice = [len(set(o.name for o in ops)) < len(ops) for ops in drawn]
    assert any(twice), "they are drawn with replacement"


def test_the_drawn_values_are_those_of_magnitude_seven_give_or_take_a_half():
    values: dict[str, list[float]] = {}
    for n in range(6000):
        for name, value in draw_operations(rng(6, n)):
            values.setdefault(name, []).append(value)
    for name, scale, centre in [
        ("rotate", 3.0, 0), ("shear_x", 0.03, 0), ("shear_y", 0.03, 0), ("translate_x", 0.045, 0),
        ("translate_y", 0.045, 0), ("color", 0.09, 1), ("contrast", 0.09, 1),
        ("brightness", 0.09, 1), ("sharpness", 0.09, 1),
    ]:  # fmt: skip
        signed = (np.array(values[name]) - centre) / scale
        assert np.abs(signed).mean() == pytest.approx(7, abs=0.08)
        assert np.abs(signed).std() == pytest.approx(0.5, abs=0.08)
        assert (signed > 0).mean() == pytest.approx(0.5, abs=0.08)
    assert set(values["posterize"]) == {1.0, 2.0}
    assert np.mean(values["solarize"]) == pytest.approx(256 - 0.7 * 256, abs=2)
    assert np.mean(values["solarize_add"]) == pytest.approx(77 - 0.5, abs=1)
    assert {v for n in ("auto_contrast", "equalize", "invert") for v in values[n]} == {0.0}


@pytest.mark.parametrize(
    ("name", "none", "most"),
    [("rotate", 0, 30), ("posterize", 4, 0), ("solarize", 256, 0), ("solarize_add", 0, 110),
     ("color", 1, 1.9), ("sharpness", 1, 1.9), ("shear_x", 0, 0.3), ("translate_y", 0, 0.45)],
)  # fmt: skip
def test_values_go_from_nothing_to_the_published_most(name, none, most):
    assert VALUES[name](0.0, 1) == pytest.approx(none)
    assert VALUES[name](1.0, 1) == pytest.approx(most)


def with_pillow(operation: Operation, image: PIL.Image.Image) -> PIL.Image.Image:
    """The operation as timm calls it."""
    name, value = operation
    width, height = image.size
    plain = {
        "auto_contrast": PIL.ImageOps.autocontrast,
        "equalize": PIL.ImageOps.equalize,
        "invert": PIL.ImageOps.invert,
    }
    enhance = {
        "color": PIL.ImageEnhance.Color,
        "contrast": PIL.ImageEnhance.Contrast,
        "brightness": PIL.ImageEnhance.Brightness,
        "sharpness": PIL.ImageEnhance.Sharpness,
    }
    affine = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value * height),
    }
    grey = {"resample": PIL.Image.Resampling.BILINEAR, "fillcolor": (128, 128, 128)}
    if name in plain:
        return plain[name](image)
    if name in enhance:
        return enhance[name](image).enhance(value)
    if name in affine:
        return image.transform(image.size, PIL.Image.Transform.AFFINE, affine[name], **grey)
    if name == "rotate":
        return image.rotate(value, **grey)
    if name == "posterize" and not value:  # newer ones refuse to keep no bit at all
        return PIL.Image.new("RGB", image.size)
    if name == "posterize":
        return PIL.ImageOps.posterize(image, int(value))
    if name == "solarize":
        return PIL.ImageOps.solarize(image, value)
    table = [min(255, v + int(value)) if v < 128 else v for v in range(256)]
    return image.point(table * 3)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("share", [0.0, 0.62, 0.7, 1.0])
@pytest.mark.parametrize("name", VALUES)
def test_an_operation_does_to_every_frame_what_it_does_in_pillow(name, share, sign):
    operation = Operation(name, float(VALUES[name](share, sign)))
    clip = smooth(3, 96, seed=2)
    if name not in GEOMETRIC:  # small details, without which nothing is sharpened
        clip = (clip * 0.8 + torch.from_numpy(rng(1).normal(20, 9, clip.shape))).clip(0, 255).byte()
    result = View((96, 96), 96, Crop(0, 0, 96, 96), (operation,)).pixels(clip)
    assert result.dtype == torch.uint8
    assert result.shape == clip.shape
    expected = np.stack(
        [np.asarray(with_pillow(operation, PIL.Image.fromarray(f.numpy()))) for f in clip]
    )
    apart = np.abs(result.numpy().astype(int) - expected.astype(int))
    if name in GEOMETRIC:  # at the edge of the picture the two blend differently
        assert np.quantile(apart, 0.97) <= 2
    else:
        assert apart.max() <= 2
    if share:
        assert (result.int() - clip.int()).abs().float().mean() > 0.5


def test_what_a_shifted_picture_leaves_bare_is_grey():
    white = torch.full((1, 3, 40, 40), 255, dtype=torch.uint8)
    shifted = apply(Operation("translate_x", 0.25), white)
    assert (shifted[..., :30] == 255).all()
    assert (shifted[..., 30:].float() == torch.tensor(FILL)[:, None, None]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_equal_frames_stay_equal(seed):
    view = replace(draw("orvit", (456, 256), 48, rng(seed)), operations=tuple(
        Operation(name, float(VALUES[name](0.7, 1 - 2 * (seed % 2))))
        for name in rng(seed, 1).choice(list(VALUES), 4)
    ))  # fmt: skip
    clip = smooth(1, 48, seed=seed % 50).expand(4, -1, -1, -1)
    result = view.pixels(clip)
    assert torch.equal(result, result[:1].expand(4, -1, -1, -1))


def test_pixels_are_left_as_they_are_where_nothing_is_to_be_done():
    clip = smooth(2, 224)
    assert torch.equal(draw("orvit", (456, 256), 224).pixels(clip), clip)


def test_what_cannot_be_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="no recipe 'avion'; known are orvit, clip, lavila, none"):
        draw("avion", (456, 256), 224)
    with pytest.raises(ValueError, match="view 3 of 3"):
        draw("orvit", (456, 256), 224, view=(3, 3))
    with pytest.raises(ValueError, match="0 x 256 pixels"):
        draw("orvit", (0, 256), 224)
    view = draw("orvit", (456, 256), 224)
    with pytest.raises(ValueError, match=r"frames of \(112, 112, 3\), the view has 224"):
        view.pixels(smooth(2, 112))
    with pytest.raises(ValueError, match="no box rule 'release'; known are correct, orvit_rel"):
        view.boxes(np.zeros((1, 4, 4)), "release")
