"""Auxiliary reading of text states, which teaches the text encoders to understand captions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from embedded import parts
from harness.datasets.scenes.world import COLOURS, MAX_OBJECTS, RELATIONS, SHAPES, SIZES, TEXTURES


def noun_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of the shapes' names."""
    known = tokenizer.get_vocab()
    return [known[tokenizer.tokenize(shape)[-1]] for shape in SHAPES]


class Comprehension(nn.Module):
    """Auxiliary head that reads the scene from three text states, one per object.

    Which object a caption places where depends on the order of mention and on the relation word together;
    a denoiser's loss alone finds that combination only after a long plateau. A text encoder that must say it
    from its states hands it to the denoiser. Used in training only.
    """

    def __init__(self, causal: bool, nouns: list[int]) -> None:
        super().__init__()
        self.causal, self.nouns = causal, nouns
        self.sizes = (len(SHAPES) + 1, len(COLOURS), len(TEXTURES), len(SIZES), len(RELATIONS))
        self.head = nn.Linear(parts.TEXT_WIDTH, sum(self.sizes))

    def slots(self, ids: Tensor) -> Tensor:
        """Positions [N, 3] of the states that stand for the objects.

        A causal encoder knows all of the caption only behind its end: the last three of the padding. Others
        use the objects' nouns, in order of mention.
        """
        if self.causal:
            last = torch.arange(ids.shape[1] - MAX_OBJECTS, ids.shape[1], device=ids.device)
            return last.expand(len(ids), -1)
        noun = torch.isin(ids, torch.tensor(self.nouns, device=ids.device))
        rank = torch.where(noun, noun.int().cumsum(1), 0)
        return torch.stack([(rank == k + 1).int().argmax(1) for k in range(MAX_OBJECTS)], 1)

    def forward(self, states: Tensor, ids: Tensor, labels: Tensor, use: Tensor) -> Tensor:
        """Loss of reading `labels` int64 [N, 3, 4 + 4] (attributes, then relations 0/1), where `use` [N]."""
        chosen = states.gather(1, self.slots(ids)[..., None].expand(-1, -1, states.shape[-1]))
        logits = torch.split(self.head(chosen).float(), list(self.sizes), -1)
        present = (labels[..., 0] != len(SHAPES)) & use[:, None]
        counted = use[:, None].expand_as(present) if self.causal else present
        loss = F.cross_entropy(logits[0][counted], labels[..., 0][counted])
        for index in (1, 2, 3):
            loss = loss + F.cross_entropy(logits[index][present], labels[..., index][present])
        wanted = labels[..., 4:].float()
        return loss + 4 * F.binary_cross_entropy_with_logits(logits[4][present], wanted[present])
