import numpy as np

from utils.pictures import OUTLINE_PREDICTION, panel


def test_panel_is_downsized_and_shows_the_prediction():
    image = np.full((1024, 512, 3), 200, np.uint8)
    prediction = np.zeros((1024, 512), np.uint8)
    prediction[300:600, 100:400] = 1
    shown = panel(image, np.zeros_like(prediction), prediction, size=256)
    assert shown.shape == (256, 4 * 128 + 3 * 4, 3)
    overlay = shown[:, -128:]
    assert (overlay == OUTLINE_PREDICTION).all(-1).any()
    assert not (shown[:, :128] == OUTLINE_PREDICTION).all(-1).any()
