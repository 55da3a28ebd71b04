import numpy as np

from utils.pictures import HATCH, OUTLINE_LABEL, OUTLINE_PREDICTION, draw_outline, panel, split_panel


def test_panel_is_downsized_and_shows_the_prediction():
    image = np.full((1024, 512, 3), 200, np.uint8)
    prediction = np.zeros((1024, 512), np.uint8)
    prediction[300:600, 100:400] = 1
    shown = panel(image, np.zeros_like(prediction), prediction, size=256)
    assert shown.shape == (256, 4 * 128 + 3 * 4, 3)
    overlay = shown[:, -128:]
    assert (overlay == OUTLINE_PREDICTION).all(-1).any()
    assert not (shown[:, :128] == OUTLINE_PREDICTION).all(-1).any()


def test_outline_does_not_run_along_the_edge_of_the_patch():
    mask = np.zeros((64, 64), bool)
    mask[:, 32:] = True
    drawn = (draw_outline(np.zeros((64, 64, 3), np.uint8), mask, (9, 9, 9)) > 0).any(-1)
    columns = np.flatnonzero(drawn.any(0))
    assert set(columns) <= set(range(29, 36))
    assert drawn[:, columns].any(1).all()
    assert not draw_outline(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool), (9, 9, 9)).any()


def test_panel_is_split_into_its_parts():
    image = np.random.default_rng(0).integers(0, 255, (60, 100, 3)).astype(np.uint8)
    label = np.zeros((60, 100), np.uint8)
    parts = split_panel(panel(image, label, label))
    assert [part.shape for part in parts] == [(60, 100, 3)] * 4
    np.testing.assert_array_equal(parts[0], image)
    assert (parts[1] == 255).all()


def test_what_is_not_known_is_hatched_and_has_no_outline():
    image = np.full((60, 100, 3), 200, np.uint8)
    label = np.zeros((60, 100), np.uint8)
    label[20:40, 10:60] = 255
    patch, truth, predicted, outlines = split_panel(panel(image, label, np.zeros_like(label)))
    for part in (truth, outlines):
        hatched = (part == HATCH).all(-1)
        assert 0.15 < hatched[20:40, 10:60].mean() < 0.4
        assert hatched.sum() == hatched[20:40, 10:60].sum()
    assert not (outlines == OUTLINE_LABEL).all(-1).any()
    np.testing.assert_array_equal(patch, image)
    assert (predicted == 255).all()
