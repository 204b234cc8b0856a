"""Trains a low-rank adapter (LoRA) with peft, and saves it together with the model's config.

This module imports peft (extra `lora`); `cheap_tuning.py` works without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME

from ..adapters import quiet_peft
from ..modeling_ast import ASTForAudioClassification

# Every linear layer of the encoder.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
# The head has no adapter: all its weights are trained and saved, as they are new for new classes.
HEAD_MODULE = "classifier"


class AdaptedAST(PeftModel):
    """peft's model; its saved folder also holds config.json, with the labels and the patch grid."""

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves the adapter as peft does, and config.json beside it."""
        # peft's default asks the Hub whether the base model has word embeddings; an AST has none.
        kwargs.setdefault("save_embedding_layers", False)
        super().save_pretrained(save_directory, *args, **kwargs)
        self.config.save_pretrained(save_directory)

    def saved_names(self) -> set[str]:
        """The names of the weights that `save_pretrained` writes."""
        return set(get_peft_model_state_dict(self, save_embedding_layers=False))

    @contextmanager
    def holding(self, folder: Path) -> Iterator[None]:
        """Inside the context the model has the adapter and the head that are saved in `folder`."""
        own = get_peft_model_state_dict(self, save_embedding_layers=False)
        own = {name: weight.clone() for name, weight in own.items()}
        set_peft_model_state_dict(self, load_file(folder / ADAPTER_SAFE_WEIGHTS_NAME))
        try:
            yield
        finally:
            set_peft_model_state_dict(self, own)

    def create_or_update_model_card(self, output_dir):
        """Writes no card, because `results.py` writes the card of a run."""


def add_adapter(
    model: ASTForAudioClassification, rank: int, alpha: float, layers: Sequence[int]
) -> AdaptedAST:
    """Adds an adapter that changes nothing yet; only the adapter and the head remain trainable.

    Args:
        model: Loaded from a folder or the Hub; the adapter will name this as its base model.
        rank: Rank of the two matrices that are added to each linear layer.
        alpha: The output of these matrices is scaled by alpha / rank.
        layers: Indices of the layers that are adapted.
    Source: Hu et al. 2021, LoRA.
    """
    name = model.config.name_or_path
    assert name  # a loaded model has a name
    base = Path(name)
    settings = LoraConfig(
        # An absolute path, so that the base model is found from every working directory.
        base_model_name_or_path=str(base.resolve() if base.is_dir() else base),
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared int, but it is only divided
        target_modules=list(LORA_TARGETS),
        layers_to_transform=list(layers),
        layers_pattern="layers",
        modules_to_save=[HEAD_MODULE],
    )
    with quiet_peft():
        return AdaptedAST(model, settings)


__all__ = ["LORA_TARGETS", "AdaptedAST", "add_adapter"]
