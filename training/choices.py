"""The names of losses, optimizers and scores, without TensorFlow: options are checked in the first second.

What they choose is in `training.losses` and `training.optimizers`.
"""

FOLDS_BY = ("patient", "center")  # see samplers.pairs.folds
BEST_BY = ("miou", "froc", "auc", "dice")
LOSSES = ("cross_entropy", "dice", "focal")
OPTIMIZERS = {"adam": 0.0, "adamw": 0.01, "sgd": 0.0, "lamb": 0.01}  # with their usual weight decay
