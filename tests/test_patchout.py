"""Patchout: what is dropped is what was said, evaluations and plain transformers see nothing of it.

There is no file of that name: it is a step of ASTEmbeddings, done by position.drop_patches.
"""

from itertools import combinations

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTConfig, ASTForAudioClassification
from modeling_ast.position import draw_kept
from tests.conftest import TINY, randomise

ROWS, COLUMNS = 3, 12  # of TINY's grid: 40 mel bins by 9, 97 frames by 7
DROPPED = {"patchout_frequency": 1, "patchout_time": 5}


@pytest.fixture
def pair():
    """The same weights without and with patchout."""
    models = []
    for changes in ({}, DROPPED):
        config = ASTConfig(**{**TINY, **changes})
        assert config.patch_grid() == (ROWS, COLUMNS)
        models.append(randomise(ASTForAudioClassification(config)))
    return models


def frames(count=2, length=97, seed=0):
    return torch.randn(count, length, 40, generator=torch.Generator().manual_seed(seed))


def mask_of(*lengths):
    return torch.arange(97) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("mask", [None, mask_of(97, 30)])
def test_an_evaluation_is_exactly_the_same(pair, mask):
    with torch.no_grad():
        plain, dropped = (model(frames(), attention_mask=mask).logits for model in pair)
    assert torch.equal(plain, dropped)


def test_none_in_training_draws_nothing(pair):
    model = pair[0].train()
    state = torch.get_rng_state()
    tokens, _ = model.audio_spectrogram_transformer.embeddings(frames())
    assert torch.equal(torch.get_rng_state(), state)
    assert tokens.shape[1] == ROWS * COLUMNS + 2


def kept_of(tokens, whole):
    """Which patches of the whole grid the tokens are: (B, N'), in their order."""
    same = (tokens[:, 2:, None] == whole[:, None, 2:]).all(-1)  # (B, N', N)
    assert (same.sum(-1) == 1).all()
    return same.int().argmax(-1)


@pytest.mark.parametrize("mask", [None, mask_of(97, 60)])
def test_whole_rows_and_columns_go(pair, mask):
    """Of the tokens with their positions; the prefix stays, and clips differ."""
    embeddings = pair[1].audio_spectrogram_transformer.embeddings
    whole, whole_mask = embeddings.eval()(frames(), mask)
    torch.manual_seed(0)
    tokens, token_mask = embeddings.train()(frames(), mask)
    assert torch.equal(tokens[:, :2], whole[:, :2])
    kept = kept_of(tokens, whole)
    assert kept.shape == (2, (ROWS - 1) * (COLUMNS - 5))
    for clip in kept:
        rows, columns = sorted({int(i) // COLUMNS for i in clip}), {int(i) % COLUMNS for i in clip}
        expected = [row * COLUMNS + column for row in rows for column in sorted(columns)]
        assert clip.tolist() == expected and len(rows) == 2 and len(columns) == 7
    assert not torch.equal(kept[0], kept[1])
    if mask is not None:
        # Padding goes first: (60 - 16) // 7 + 1 columns were audio, as many are left, all audio.
        assert whole_mask[:, 2:].gather(1, kept).all() and token_mask is None


def test_the_mask_says_what_is_padding_among_the_kept(pair):
    embeddings = pair[1].audio_spectrogram_transformer.embeddings
    whole, whole_mask = embeddings.eval()(frames(), mask_of(97, 30))
    tokens, token_mask = embeddings.train()(frames(), mask_of(97, 30))
    kept = kept_of(tokens, whole)
    assert torch.equal(token_mask[:, 2:], whole_mask[:, 2:].gather(1, kept))
    assert token_mask[1, 2:].sum() == 2 * 3


def test_padding_is_dropped_first(pair):
    """A clip of two columns keeps both, whatever is drawn."""
    embeddings = pair[1].audio_spectrogram_transformer.embeddings.train()
    for seed in range(20):
        torch.manual_seed(seed)
        _, token_mask = embeddings(frames(), mask_of(97, 23))
        assert token_mask[1, 2:].sum() == 2 * 2


def test_all_sets_are_equally_likely():
    """Chi-squared over the 10 ways to keep 3 of 5: below its 99.99 % quantile, 33.7."""
    torch.manual_seed(0)
    kept = draw_kept(torch.zeros(20_000, 5, dtype=torch.bool), 2)
    ways = dict.fromkeys(combinations(range(5), 3), 0)
    for row in kept.tolist():
        ways[tuple(row)] += 1
    assert sum((count - 2000) ** 2 / 2000 for count in ways.values()) < 33.7
    assert draw_kept(torch.zeros(1, 3, dtype=torch.bool), 7).shape == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, mask_of(97, 60)])
def test_one_compiled_graph_trains(pair, mask):
    model = pair[1].train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in range(2):
        out = compiled(frames(seed=step), attention_mask=mask, labels=torch.tensor([0, 1]))
        out.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_plain_transformers_loads_it(pair, tmp_path):
    pair[1].save_pretrained(tmp_path)
    theirs = transformers.models.audio_spectrogram_transformer.ASTForAudioClassification
    model = theirs.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(frames()).logits, pair[1](frames()).logits)
    again = ASTForAudioClassification.from_pretrained(tmp_path).config
    assert (again.patchout_frequency, again.patchout_time) == (1, 5)
    changed = ASTForAudioClassification.from_pretrained(tmp_path, patchout_time=0).config
    assert (changed.patchout_frequency, changed.patchout_time) == (1, 0)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [("patchout_frequency", 3, "from 0 to 2 of 3"), ("patchout_time", -1, "from 0 to 11 of 12")],
)
def test_impossible_numbers(field, value, wanted):
    with pytest.raises(StrictDataclassError, match=f"{field} is {value}.*{wanted}"):
        ASTConfig(**{**TINY, field: value})
