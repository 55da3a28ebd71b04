"""Augmentation: image and label turn alike, colours change within bounds, results go where they should."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from samplers.augment import Augmentation

IDENTITY = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[None]


def noise(size: int = 33) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_turns_are_the_eight_of_the_square_and_alike_for_the_label() -> None:
    image = noise()
    expected = {np.rot90(side, k).tobytes() for side in (image, image[:, ::-1]) for k in range(4)}
    found = set()
    for turn in range(8):
        augmented, label = np.empty_like(image), np.empty_like(image[:, :, 0])
        Augmentation(turn, IDENTITY).image(image, augmented)
        Augmentation(turn, IDENTITY).label(np.ascontiguousarray(image[:, :, 0]), label)
        np.testing.assert_array_equal(augmented[:, :, 0], label)
        found.add(augmented.tobytes())
    assert found == expected


def test_results_are_written_into_a_batch() -> None:
    batch = np.zeros((3, 33, 33, 3), np.uint8)
    for turn in range(8):
        batch[:] = 0
        Augmentation(turn, IDENTITY).image(noise(), batch[1])
        assert batch[1].any()
        assert not batch[[0, 2]].any()


def test_the_input_stays_as_it_is() -> None:
    image = noise()
    image.setflags(write=False)  # as the slide gives it
    out = np.empty_like(image)
    for seed in range(16):
        Augmentation.draw(np.random.default_rng(seed)).image(image, out)
    np.testing.assert_array_equal(image, noise())


def test_same_generator_same_augmentation() -> None:
    first, second, other = (Augmentation.draw(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.turn == second.turn
    np.testing.assert_array_equal(first.table, second.table)
    assert not np.array_equal(first.table, other.table)


def test_every_turn_is_drawn() -> None:
    rng = np.random.default_rng(0)
    assert {Augmentation.draw(rng).turn for _ in range(100)} == set(range(8))


def test_colours_keep_their_order_and_change_a_little() -> None:
    rng = np.random.default_rng(0)
    tables = np.array([Augmentation.draw(rng).table[0] for _ in range(200)]).astype(int)
    assert (np.diff(tables, axis=1) >= 0).all()  # darker stays darker
    change = tables[:, 150] - 150
    assert 3 < np.abs(change).mean() < 20
    assert abs(change.mean()) < 3
    assert np.abs(change[:, 0] - change[:, 1]).mean() > 2  # and not all channels alike


def test_strong_jitter_moves_channels_apart_and_none_leaves_them() -> None:
    def spread(stain_jitter: str) -> float:
        rng = np.random.default_rng(0)
        tables = np.array([Augmentation.draw(rng, stain_jitter).table[0] for _ in range(200)]).astype(int)
        assert (np.diff(tables, axis=1) >= 0).all()
        return float(np.abs(tables[:, 150, 0] - tables[:, 150, 2]).mean())

    assert spread("none") == 0
    assert spread("strong") > 2.5 * spread("light")


@given(st.integers(1, 40), st.data())
def test_the_rows_of_every_turn_come_from_the_part_that_it_names(size: int, data: st.DataObject) -> None:
    image = np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    for turn in range(8):
        table = np.random.default_rng(turn).integers(0, 256, (1, 256, 3), dtype=np.uint8)
        augmentation = Augmentation(turn, table)
        whole, strip = np.empty_like(image), np.empty((stop - start, size, 3), np.uint8)
        augmentation.image(image, whole)
        augmentation.image(image[augmentation.source_of(start, stop, size).slices], strip)
        np.testing.assert_array_equal(strip, whole[start:stop])
