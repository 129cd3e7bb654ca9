"""Training of objectives."""

from pyg_mmrec.training.checkpoint import load_checkpoint, save_checkpoint
from pyg_mmrec.training.early_stopping import EarlyStopping
from pyg_mmrec.training.history import History
from pyg_mmrec.training.process import tune_process
from pyg_mmrec.training.trainer import Trainer
from pyg_mmrec.training.training_options import TrainingOptions
from pyg_mmrec.training.triplet_sampler import TripletSampler

__all__ = [
    "EarlyStopping",
    "History",
    "Trainer",
    "TrainingOptions",
    "TripletSampler",
    "tune_process",
    "load_checkpoint",
    "save_checkpoint",
]
