"""When things happen: pure functions of the step."""

from __future__ import annotations

import pytest

from training.options import build_parser
from training.plan import Due, Plan


def plan_of(words: str, ranks: int = 1) -> Plan:
    return Plan.of(build_parser().parse_args(words.split()), ranks)


def test_what_crosses_a_multiple_is_due():
    plan = plan_of("--num_steps 20 --batch_size 2 --log_every 4 --validate_every 7 --checkpoint_every 5")
    due = {step: plan.due(step) for step in range(2, 21, 2)}
    assert [step for step in due if due[step].log] == [4, 8, 12, 16, 20]
    assert [step for step in due if due[step].validate] == [8, 14, 20]
    assert [step for step in due if due[step].save] == [6, 8, 10, 14, 16, 20]
    assert [step for step in due if due[step].done] == [20]


def test_all_is_due_at_the_end_and_beyond_it():
    plan = plan_of("--num_steps 25 --batch_size 4 --log_every 100", ranks=3)
    assert plan.due(24) == Due(False, False, False, False, False)
    assert plan.due(36) == Due(True, True, False, True, True)


def test_whole_slides_are_due_with_a_checkpoint_and_at_the_end():
    words = "--num_steps 20 --batch_size 2 --validate_every 100 --validate_slides 3"
    due = {step: plan_of(f"{words} --validate_slides_every 7").due(step) for step in range(2, 21, 2)}
    assert [step for step in due if due[step].validate_slides] == [8, 14, 20]
    assert [step for step in due if due[step].save] == [8, 14, 20]
    assert [step for step in due if due[step].validate] == [20]
    due = {step: plan_of(f"{words} --num_steps 200").due(step) for step in range(2, 201, 2)}
    assert [step for step in due if due[step].validate_slides] == list(range(20, 201, 20))


def test_an_update_of_several_batches_crosses_more_steps():
    plan = plan_of("--num_steps 100 --batch_size 2 --accumulate_steps 3 --log_every 5")
    assert [plan.due(step).log for step in (6, 12, 18)] == [True, True, True]
    assert not plan_of("--num_steps 100 --batch_size 2 --log_every 5").due(8).log


@pytest.mark.parametrize(("freeze", "first"), [("0", None), ("0.25", 12), ("0.3", 12), ("0.5", 8), ("1", 0)])
def test_batch_norm_freezes_once(freeze, first):
    plan = plan_of(f"--num_steps 16 --batch_size 2 --freeze_bn {freeze}", ranks=2)
    steps = range(0, 16, 4)
    assert [step for step in steps if plan.frozen(step)] == [
        s for s in steps if first is not None and s >= first
    ]


def test_batch_norm_that_never_freezes_does_not_in_the_last_update_either():
    plan = plan_of("--num_steps 50 --batch_size 2 --accumulate_steps 4 --freeze_bn 0")
    assert not any(plan.frozen(step) for step in range(0, 64, 2))


def test_the_warm_up_comes_again_after_the_freeze():
    plan = plan_of(
        "--num_steps 40 --batch_size 4 --learning_rate 0.5 --freeze_bn 0.5 --warmup_steps 9 --lr_schedule constant"
    )
    assert [plan.rate(step) for step in (0, 4, 8, 12, 20, 24)] == pytest.approx(
        [0.05, 0.25, 0.45, 0.5, 0.05, 0.25]
    )
