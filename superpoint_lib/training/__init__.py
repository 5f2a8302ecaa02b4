"""Training of the detector and of SuperPoint: one written-out loop, resumable at any step.

The batch of step t is ``dataset[t B] .. dataset[t B + B - 1]``, the learning rate is a function of
t, and a checkpoint holds weights, their moving average and the optimiser's state: a run that was
interrupted and resumed ends with the same weights as one that was not. PyTorch Lightning's Fabric
chooses the device and the precision; under torchrun it trains on several.

* ``config``: what defines a run, and the recipes;
* ``steps``: the loss of a batch, and the learning rate of a step;
* ``facts``, ``pieces``: where a run takes place, and what it is put together from;
* ``run``: its state between steps, its checkpoints and history;
* ``loop``: ``train``;
* ``publish``: a finished run's weights for others;
* ``modes``: train mode and eval mode compared, statistics measured anew.

Derived in notebooks 02 (detector) and 05 (both heads).
"""

from superpoint_lib.training.config import RECIPES, TrainConfig
from superpoint_lib.training.loop import TrainResult, train
from superpoint_lib.training.modes import mode_losses, reestimate_norm
from superpoint_lib.training.pieces import make_dataset, make_model
from superpoint_lib.training.publish import release
from superpoint_lib.training.run import NonFiniteLossError, read_history
from superpoint_lib.training.steps import (
    Batch,
    Losses,
    detector_step,
    learning_rate_at,
    pair_step,
)

__all__ = [
    "RECIPES",
    "Batch",
    "Losses",
    "NonFiniteLossError",
    "TrainConfig",
    "TrainResult",
    "detector_step",
    "learning_rate_at",
    "make_dataset",
    "make_model",
    "mode_losses",
    "pair_step",
    "read_history",
    "reestimate_norm",
    "release",
    "train",
]
