"""Each clause of CAMELYON16's lesion score, on cases whose answers are derived by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from evaluation import froc
from evaluation.froc import (
    Detection,
    SlideResult,
    TrueLesion,
    bootstrap,
    curve,
    evaluation_mask,
    match,
    score,
)


def canvas(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (100, 100)) -> np.ndarray:
    """Tumour at level 5 in boxes of (top, left, bottom, right)."""
    tumour = np.zeros(shape, bool)
    for top, left, bottom, right in boxes:
        tumour[top:bottom, left:right] = True
    return tumour


def at(row: float, column: float, confidence: float = 0.5) -> Detection:
    """A detection at a pixel of level 5."""
    return Detection(confidence, column * 32, row * 32)


def slide(hits: list[float | None], false: list[float], itc: list[float | None] | None = None) -> SlideResult:
    """Lesions with the confidence of their hit (None: missed), and false positives."""
    all_hits = [(hit, False) for hit in hits] + [(hit, True) for hit in itc or []]
    lesions = tuple(
        TrueLesion(i + 1, small, 0, 0, 0, 0, None if hit is None else Detection(hit, 0, 0))
        for i, (hit, small) in enumerate(all_hits)
    )
    return SlideResult("slide", lesions, tuple(Detection(c, 0, 0) for c in false))


def test_lesions_grow_by_less_than_75_um_over_two() -> None:
    # 75 / (0.243 · 32 · 2) = 4.82: the points of a grid within sqrt(23) of another are 69.
    assert np.count_nonzero(evaluation_mask(canvas((50, 50, 51, 51)))) == 69


@pytest.mark.parametrize(("gap", "lesions"), [(8, 1), (9, 2)])
def test_lesions_closer_than_75_um_merge(gap: int, lesions: int) -> None:
    # Each grows by 4 pixels: 8 between them are filled, of 9 the middle one is 5 away.
    assert evaluation_mask(canvas((20, 5, 80, 30), (20, 30 + gap, 80, 70))).max() == lesions


def test_holes_are_filled() -> None:
    tumour = canvas((10, 10, 80, 80))
    tumour[30:60, 30:60] = False
    result = match("a", [at(45, 45)], tumour)
    assert result.lesions[0].hit == at(45, 45)


def test_corners_that_touch_connect() -> None:
    # The rightmost column of a grown pixel is 4 away, 2 up and down; this one's corner touches that of the other.
    tumour = canvas((40, 40, 41, 41), (45, 49, 46, 50))
    assert evaluation_mask(tumour).max() == 1
    assert ndimage.label(evaluation_mask(tumour))[1] == 2  # by edges they would be two


@pytest.mark.parametrize(("width", "itc"), [(30, True), (31, False)])
def test_isolated_tumour_cells_are_shorter_than_275_um(width: int, itc: bool) -> None:
    # The major axis of n pixels in a row is 4 · sqrt((n² - 1) / 12): 34.62 for 30, 35.78 for 31; limit 35.37.
    lesion = match("a", [], np.ones((4, width), bool)).lesions[0]
    assert lesion.itc is itc
    assert lesion.diameter == pytest.approx(4 * np.sqrt((width**2 - 1) / 12) * 0.243 * 32)
    assert lesion.area == pytest.approx(4 * width * (0.243 * 32) ** 2)
    assert (lesion.x, lesion.y) == (width * 16, 64)


def test_a_detection_belongs_to_the_pixel_that_it_is_in() -> None:
    tumour = canvas((0, 10, 100, 100))  # grows to column 6, from x = 192 on
    for x, hits in ((191, False), (191.9, False), (192, True), (223, True)):
        result = match("a", [Detection(0.5, x, 100)], tumour)
        assert (result.lesions[0].hit is not None) == hits
        assert len(result.false_positives) == (not hits)


def test_x_is_the_column_and_y_the_row() -> None:
    result = match(
        "a", [Detection(0.5, 90 * 32, 40 * 32), Detection(0.5, 40 * 32, 90 * 32)], canvas((20, 70, 60, 99))
    )
    assert result.lesions[0].hit == Detection(0.5, 90 * 32, 40 * 32)
    assert result.false_positives == (Detection(0.5, 40 * 32, 90 * 32),)


def test_only_the_most_confident_hit_of_a_lesion_counts() -> None:
    hits = [at(30, 30, 0.4), at(40, 40, 0.8), at(31, 31, 0.8), at(32, 32, 0.6)]
    result = match("a", hits, canvas((20, 20, 60, 60)))
    assert result.lesions[0].hit == hits[1]  # the first of two that are as confident
    assert result.false_positives == ()


def test_on_a_normal_slide_all_are_false_positives() -> None:
    detections = [at(1, 1), at(10000, 10000)]
    for tumour in (None, canvas()):
        result = match("a", detections, tumour)
        assert result.false_positives == tuple(detections)
        assert result.lesions == ()


def test_detections_that_are_not_on_the_slide_are_false_positives_and_counted() -> None:
    detections = [at(100, 50), at(50, 100), at(-0.1, 50), at(50, -0.1), at(99, 99)]
    result = match("a", detections, canvas((0, 0, 90, 90)))
    assert (len(result.false_positives), result.outside) == (5, 4)


def test_isolated_tumour_cells_are_neither_found_nor_false() -> None:
    tumour = canvas((20, 20, 60, 60), (90, 90, 91, 91))
    result = match("a", [at(90, 90, 0.9), at(40, 40, 0.7)], tumour)
    assert [lesion.itc for lesion in result.lesions] == [False, True]
    assert result.false_positives == ()
    assert froc.targets([result]) == 1
    false, found, thresholds = curve([result])
    # The 0 of the ITC is the lowest threshold, so the hit's own is kept.
    assert (false.tolist(), found.tolist()) == ([0, 0], [1, 0])
    assert thresholds.tolist() == [np.float32(0.7), np.inf]
    assert curve([result], corrected=True)[2].tolist() == [0.7, np.inf]


def test_one_slide_one_lesion_one_hit() -> None:
    one = [slide([0.9], [])]
    assert score(one) == 0.0
    assert score(one, corrected=True) == 1.0


def test_curve_with_a_missed_lesion() -> None:
    # {0, 0.4, 0.8, 0.9}[1:]; two slides, two lesions.
    results = [slide([0.9, None], [0.8]), slide([], [0.4])]
    for corrected in (False, True):
        false, found, _ = curve(results, corrected)
        assert (false.tolist(), found.tolist()) == ([1, 0.5, 0, 0], [0.5, 0.5, 0.5, 0])
        assert score(results, corrected) == 0.5


def test_the_lowest_threshold_is_dropped_officially() -> None:
    # Officially {0.5, 0.9}: (2, 1/2), (0, 1/2), (0, 0). The threshold of 0.2 adds (2, 1): 1/2 thrice, 1 thrice.
    results = [slide([0.9, 0.2], [0.5, 0.5])]
    assert score(results) == 0.5
    assert score(results, corrected=True) == 0.75


def test_sensitivity_is_interpolated_between_points_and_constant_behind_them() -> None:
    # (1, 1/2) and (0, 0): 1/8, 1/4, 1/2, and 1/2 at 2, 4 and 8.
    results = [slide([0.5, None], [0.5])]
    for corrected in (False, True):
        values = froc.sensitivities(*curve(results, corrected)[:2])
        assert values.tolist() == [0.125, 0.25, 0.5, 0.5, 0.5, 0.5]
        assert score(results, corrected) == pytest.approx(2.375 / 6, abs=1e-15)


def test_a_point_above_another_counts_at_its_own_rate() -> None:
    # 0.95 is false, 0.9 a hit: (1, 1/2), (1, 0), (0, 0), so 0 before one false positive a slide, 1/2 from there on.
    assert score([slide([0.9, None], [0.95])]) == pytest.approx(2 / 6, abs=1e-15)


def test_hits_are_float32_officially() -> None:
    # As float32 0.3 is larger, so officially there is a threshold that the hit reaches and the equal false
    # positive does not: (0, 1/2). 0.7 is smaller as float32: no such threshold.
    above, below = [slide([0.3, None], [0.3])], [slide([0.7, None], [0.7])]
    assert score(above) == 0.5
    assert score(above, corrected=True) == score(below) == score(below, corrected=True)
    assert score(below) == pytest.approx(2.375 / 6, abs=1e-15)


def test_a_hit_of_confidence_0_does_not_count_officially() -> None:
    results = [slide([0.0, 0.5], [])]
    assert curve(results)[1].tolist() == [0.5, 0]
    assert curve(results, corrected=True)[1].tolist() == [1, 0.5, 0]
    # Nor does one below: it is as if missed, and the threshold that is dropped is a 0.
    assert curve([slide([-0.5, 0.5], [])])[2].tolist() == [0.5, np.inf]


def test_false_positives_are_divided_by_the_slides_with_a_list() -> None:
    results = [slide([0.9, None], [0.5]), slide([], []), slide([], []), slide([], [])]
    assert curve(results)[0].tolist() == [0.25, 0, 0]


def test_without_a_lesion_there_is_no_score() -> None:
    with pytest.raises(ValueError, match="no lesion"):
        score([slide([], [0.5], itc=[0.9])])


def exactly_below(a: float | np.float32, b: float | np.float32) -> bool:
    """Whether NumPy 1 says a < b: both as float64. NumPy 2 rounds a Python number to float32 first."""
    return bool(np.float64(a) < np.float64(b))


def organisers_curve(results: list[SlideResult]) -> tuple[list[float], list[float]]:
    """The loops of the organisers' program, with NumPy 1's comparisons: false positives per slide, sensitivities."""
    unlisted_fps: list[float] = [d.confidence for result in results for d in result.false_positives]
    unlisted_tps: list[np.float32] = []
    targets = 0
    for result in results:
        tp_probs = np.zeros((len(result.lesions),), dtype=np.float32)
        for lesion in result.lesions:
            if not lesion.itc:
                targets += 1
                if lesion.hit and exactly_below(tp_probs[lesion.label - 1], lesion.hit.confidence):
                    tp_probs[lesion.label - 1] = lesion.hit.confidence
        unlisted_tps += list(tp_probs)
    thresholds: list[float | np.float32] = []
    for value in unlisted_fps + unlisted_tps:  # sorted(set(…)), by insertion
        if any(not exactly_below(value, t) and not exactly_below(t, value) for t in thresholds):
            continue
        place = sum(exactly_below(t, value) for t in thresholds)
        thresholds.insert(place, value)
    total_fps, total_tps = [], []
    for threshold in thresholds[1:]:
        total_fps.append(int((np.asarray(unlisted_fps, np.float64) >= np.float64(threshold)).sum()))
        total_tps.append(
            int((np.asarray(unlisted_tps) >= np.float32(threshold)).sum())
        )  # an array keeps its type
    total_fps.append(0)
    total_tps.append(0)
    return [n / float(len(results)) for n in total_fps], [n / float(targets) for n in total_tps]


def tied_case(seed: int) -> list[SlideResult]:
    """Four slides whose hits and false positives have few confidences, nearly all of them no float32."""
    rng = np.random.default_rng(seed)
    values = [(0.8, 0.9), (0.1, 0.3, 0.5, 0.7, 0.8, 0.9), tuple(np.arange(101) / 100)][seed % 3]

    def some(count: int, missed: float = 0.0) -> list[float | None]:
        return [None if rng.random() < missed else float(rng.choice(values)) for _ in range(count)]

    return [slide(some(3, 0.2 * (seed % 2)), some(int(rng.integers(0, 12))), some(1)) for _ in range(4)]


@pytest.mark.parametrize("seed", range(60))
def test_curve_is_that_of_the_organisers_program_in_any_order_of_files(seed: int) -> None:
    results = tied_case(seed)
    false, found = organisers_curve(results)
    at_rates = np.interp(froc.RATES, false[::-1], found[::-1])
    orders = [results, results[::-1], results[2:] + results[:2]]
    for order in orders:
        got = curve(order)
        assert (got[0].tolist(), got[1].tolist()) == (false, found)
        assert score(order) == float(np.mean(at_rates))
        assert score(order, corrected=True) == score(results, corrected=True)


def test_ties_are_sorted_by_their_exact_value() -> None:
    # float32(0.8) is above 0.8, float32(0.9) below 0.9: {0, 0.8, 0.8f, 0.9f, 0.9}[1:].
    false, found, thresholds = curve([slide([0.8, 0.9, None], [0.8, 0.9])])
    assert thresholds.tolist() == [0.8, float(np.float32(0.8)), float(np.float32(0.9)), 0.9, np.inf]
    assert false.tolist() == [2, 1, 1, 1, 0]
    # An array of float32 is compared with 0.8 as float32, so the threshold 0.9 is reached by the hit of 0.9.
    assert found.tolist() == [2 / 3, 2 / 3, 1 / 3, 1 / 3, 0]


def test_detections_in_ignored_regions_are_neither_found_nor_false() -> None:
    tumour = canvas((20, 20, 60, 60))
    ignored = canvas((20, 50, 60, 60), (80, 80, 90, 90))
    detections = [at(30, 30, 0.4), at(30, 55, 0.9), at(85, 85, 0.8), at(95, 95, 0.7), at(200, 200, 0.6)]
    result = match("a", detections, tumour & ~ignored, ignored)
    assert [lesion.hit for lesion in result.lesions] == [detections[0]]
    assert (result.false_positives, result.ignored, result.outside) == (tuple(detections[3:]), 2, 1)
    beyond = match("a", detections, tumour & ~ignored, ignored, known_beyond=False)
    assert (beyond.false_positives, beyond.ignored, beyond.outside) == ((detections[3],), 3, 0)


def test_bootstrap_is_of_slides_and_repeatable() -> None:
    values = np.arange(100.0)
    low, high = bootstrap(lambda i: float(values[i].mean()), 100, 2000, seed=1) or (0, 0)
    # The mean of 100 numbers 0 … 99: 49.5 ± 1.96 · 28.9 / 10
    assert (low, high) == (pytest.approx(49.5 - 5.66, abs=0.5), pytest.approx(49.5 + 5.66, abs=0.5))
    assert bootstrap(lambda i: float(values[i].mean()), 100, 2000, seed=1) == (low, high)


def test_bootstrap_leaves_out_samples_without_a_score() -> None:
    results = [slide([0.9, None], []), slide([], [0.3])]
    interval = bootstrap(lambda i: score([results[k] for k in i]), 2, 200, seed=0)
    assert interval == (0.5, 0.5)
    assert bootstrap(lambda i: score([results[1]]), 2, 20, seed=0) is None


def test_bootstrap_does_not_hide_a_bug() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        bootstrap(lambda i: int("a bug"), 2, 20, seed=0)
