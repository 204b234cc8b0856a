"""A model with an adapter of low rank (LoRA) that is trained: peft's, saved so that it is whole.

The module imports peft (extra `lora`); `cheap_tuning.py` does not.
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
# Trained and saved whole: for new classes it is fresh.
HEAD_MODULE = "classifier"


class AdaptedAST(PeftModel):
    """peft's model, whose folder also has the config of the whole model: its labels, its grid."""

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As peft's, with config.json."""
        # By default peft asks the Hub whether the base model has embeddings of words.
        kwargs.setdefault("save_embedding_layers", False)
        super().save_pretrained(save_directory, *args, **kwargs)
        self.config.save_pretrained(save_directory)

    def saved_names(self) -> set[str]:
        """The names of the weights that `save_pretrained` writes."""
        return set(get_peft_model_state_dict(self, save_embedding_layers=False))

    @contextmanager
    def holding(self, folder: Path) -> Iterator[None]:
        """Has the adapter and the head that are saved in a folder, for a while."""
        own = get_peft_model_state_dict(self, save_embedding_layers=False)
        own = {name: weight.clone() for name, weight in own.items()}
        set_peft_model_state_dict(self, load_file(folder / ADAPTER_SAFE_WEIGHTS_NAME))
        try:
            yield
        finally:
            set_peft_model_state_dict(self, own)

    def create_or_update_model_card(self, output_dir):
        """Writes none: the card of a run is that of `results.py`."""


def add_adapter(
    model: ASTForAudioClassification, rank: int, alpha: float, layers: Sequence[int]
) -> AdaptedAST:
    """The model with an adapter that does nothing yet; all but adapter and head is frozen.

    Args:
        model: Loaded from a folder or the Hub, which the adapter will name as its base model.
        rank: Of the two matrices that are added to each linear layer.
        alpha: What they add is scaled by alpha / rank.
        layers: Indices of the layers that are adapted.
    Source: Hu et al. 2021, LoRA.
    """
    name = model.config.name_or_path
    assert name  # it has been loaded
    base = Path(name)
    settings = LoraConfig(
        # A folder is found from anywhere only by its whole path.
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
