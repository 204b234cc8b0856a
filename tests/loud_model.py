"""A model that can be computed by hand: label "loud" if any frame of a clip is loud."""

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from modeling_ast import ASTConfig, ASTFeatureExtractor
from modeling_ast.tagging import AudioTagger

# A log-mel of 0 is lower than that of a tone or click at full scale, but higher than soft noise.
LEVEL = 0.0
LABELS = ["loud", "quiet", "never"]


class LoudModel(nn.Module):
    """Logits of +-20: sigmoids are 0 and 1 within 2e-9."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.config = ASTConfig(
            num_mel_bins=40,
            max_length=200,
            do_normalize=False,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
            problem_type="multi_label_classification",
        )
        self.num_frames = []  # of each batch

    def forward(self, input_values, attention_mask=None):
        self.num_frames.append(input_values.shape[1])
        real = input_values
        if attention_mask is not None:
            real = input_values.masked_fill(attention_mask.unsqueeze(-1) == 0, -100.0)
        is_loud = real.amax((1, 2)) > LEVEL  # (B,)
        loud = torch.where(is_loud, 20.0, -20.0)
        logits = torch.stack([loud, -loud, torch.full_like(loud, -20.0)], 1)  # (B, 3)
        return SequenceClassifierOutput(logits=logits)


def loud_tagger(padding="longest", **kwargs):
    """An AudioTagger with this model."""
    model = LoudModel()
    return AudioTagger(
        model,
        ASTFeatureExtractor.from_config(model.config),
        padding=padding,
        num_workers=0,
        **kwargs,
    )
