"""What a fine-tuning adds to the model; needs the extra `train`: pip install modeling-ast[train].

The names here are parts that each work alone, in your own Trainer script. `finetuning.py` and
`evaluation.py` put them together, for the commands `modeling-ast finetune` and `evaluate`.
"""

from ..conversion import WeightMean, average_checkpoints
from .answers import Answers, summary_lines
from .augmentation import (
    Augmentation,
    add_noise,
    change_gain,
    mask_frequency,
    mask_time,
    mixup,
    mixup_shares,
    roll_time,
    smooth_labels,
)
from .averaging import AverageWeightsCallback, ensemble_probabilities
from .batches import AudioCollator, LabelEncoder, add_features
from .checkpoints import last_whole_checkpoint
from .classes import check_labels, read_classes
from .clips import (
    FOLDER_FEATURES,
    BadClips,
    ClipReader,
    TooManyBadClips,
    drop_bad_clips,
    undecoded,
)
from .data_arguments import DataArguments
from .data_report import DataReport
from .data_sources import Loaded, load, load_data, load_part
from .intervals import Interval, accuracy_interval, mean_precision_interval
from .metrics import (
    AudioTaggingMetric,
    ClassResult,
    accuracy,
    areas_under_roc,
    average_precisions,
    class_table,
    compute_metrics,
    d_prime,
    precision_recall_f1,
    tagging_metrics,
)
from .normalization import Moments, normalization_stats
from .optimizer import SCHEDULES, EpochDecay, layered_adamw, parameter_groups, published_adam
from .sampling import BalancedSampler, EpochCallback, balanced_weights
from .streams import TrainingStream
from .trainer import ASTTrainer

__all__ = [
    "FOLDER_FEATURES",
    "SCHEDULES",
    "ASTTrainer",
    "Answers",
    "AudioCollator",
    "AudioTaggingMetric",
    "Augmentation",
    "AverageWeightsCallback",
    "BadClips",
    "BalancedSampler",
    "ClassResult",
    "ClipReader",
    "DataArguments",
    "DataReport",
    "EpochCallback",
    "EpochDecay",
    "Interval",
    "LabelEncoder",
    "Loaded",
    "Moments",
    "TooManyBadClips",
    "TrainingStream",
    "WeightMean",
    "accuracy",
    "accuracy_interval",
    "add_features",
    "add_noise",
    "areas_under_roc",
    "average_checkpoints",
    "average_precisions",
    "balanced_weights",
    "change_gain",
    "check_labels",
    "class_table",
    "compute_metrics",
    "d_prime",
    "drop_bad_clips",
    "ensemble_probabilities",
    "last_whole_checkpoint",
    "layered_adamw",
    "load",
    "load_data",
    "load_part",
    "mask_frequency",
    "mask_time",
    "mean_precision_interval",
    "mixup",
    "mixup_shares",
    "normalization_stats",
    "parameter_groups",
    "precision_recall_f1",
    "published_adam",
    "read_classes",
    "roll_time",
    "smooth_labels",
    "summary_lines",
    "tagging_metrics",
    "undecoded",
]
