"""Trains a DIN over torchrec's `EmbeddingCollection` on histories of films, made up, on any number of ranks.

    deepspeed --num_accelerators 4 examples/din.py --deepspeed --deepspeed_config examples/ds_sptt.json

A history has any number of films, none to some dozens; the film in question attends to it, padded to a constant length.
The rows of a history travel by id: each once per host and step, however many users have seen the film. Nothing in the
model knows of that, or of ranks.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)

import dmt_plugin

FILMS, GENRES = 2000, 18
PROFILE = {"gender": 2, "age": 7, "occupation": 21}
KEYS = [*PROFILE, "seen", "seen_genre", "film", "genre"]
LENGTH = 20
"""Films of a history that the model looks at; those behind are cut off."""


class DIN(nn.Module):
    """A profile, a film, and the films seen before, each weighed by a small MLP over it and the film in question.

    Args:
        width: of every embedding.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        sizes = {"film": (FILMS, ["seen", "film"]), "genre": (GENRES, ["seen_genre", "genre"])}
        self.rows = EmbeddingCollection(
            tables=[
                EmbeddingConfig(name=f"{name}_table", embedding_dim=width, num_embeddings=rows, feature_names=keys)
                for name, (rows, keys) in sizes.items()
            ]
        )
        self.profile = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=f"{key}_table", embedding_dim=width, num_embeddings=rows, feature_names=[key])
                for key, rows in PROFILE.items()
            ]
        )
        self.attention = nn.Sequential(nn.Linear(8 * width, 16), nn.ReLU(), nn.Linear(16, 1))
        self.top = nn.Sequential(nn.Linear((len(PROFILE) + 4) * width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Logits `(B,)`; of `KEYS`, all but the history have one id per sample."""
        rows = self.rows(features)
        film = torch.cat([rows["film"].values(), rows["genre"].values()], 1)
        seen = torch.cat([rows[key].to_padded_dense(LENGTH) for key in ("seen", "seen_genre")], 2)
        asked = film.unsqueeze(1).expand(-1, LENGTH, -1)
        weight = self.attention(torch.cat([asked, seen, asked - seen, asked * seen], 2))
        there = torch.arange(LENGTH, device=weight.device) < rows["seen"].lengths().unsqueeze(1)
        history = (weight * there.unsqueeze(2) * seen).sum(1)
        return self.top(torch.cat([self.profile(features).values(), film, history], 1)).squeeze(1)


@dataclass(frozen=True)
class Films:
    """Made-up users who like two genres each, and see what is popular of these.

    Attributes:
        seed: decides everything.
    """

    seed: int = 0

    def batch(self, n: int, number: int) -> tuple[KeyedJaggedTensor, Tensor]:
        """Features and labels of `n` samples; another `number` gives others."""
        g = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        genre_of = torch.randint(GENRES, (FILMS,), generator=torch.Generator().manual_seed(self.seed))
        taste = torch.randint(GENRES, (n, 2), generator=g)
        lengths = torch.empty(n).geometric_(0.08, generator=g).long() - 1
        owner = torch.repeat_interleave(torch.arange(n), lengths)
        seen = _of_genre(genre_of, taste[owner, torch.randint(2, owner.shape, generator=g)], g)
        liked = torch.rand(n, generator=g) < 0.5
        asked = torch.where(liked, taste[:, 0], torch.randint(GENRES, (n,), generator=g))
        film = _of_genre(genre_of, asked, g)
        profile = [torch.randint(rows, (n,), generator=g) for rows in PROFILE.values()]
        one = torch.ones(n, dtype=torch.long)
        features = KeyedJaggedTensor(
            KEYS,
            torch.cat([*profile, seen, genre_of[seen], film, genre_of[film]]),
            lengths=torch.cat([*[one] * len(PROFILE), lengths, lengths, one, one]),
        )
        return features, liked.float()


def _of_genre(genre_of: Tensor, genres: Tensor, g: torch.Generator) -> Tensor:
    """A film of each genre, popular ones more often."""
    by_genre = torch.argsort(genre_of, stable=True)
    count = torch.bincount(genre_of, minlength=GENRES)
    place = (torch.rand(genres.shape, generator=g) ** 3 * count[genres]).long()
    return by_genre[(count.cumsum(0) - count)[genres] + place]


def build() -> DIN:
    """The model, initialised from torch's current seed."""
    return DIN()


def example_batch(n: int = 8) -> tuple[KeyedJaggedTensor]:
    """A call of the model."""
    return (Films().batch(n, 0)[0],)


def main() -> None:
    """Trains, and prints the mean losses of the first and the last twenty steps."""
    parser = argparse.ArgumentParser(description="a DIN on histories of films")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the launcher")
    args = deepspeed.add_config_arguments(parser).parse_args()
    torch.manual_seed(args.seed)
    model, films = build(), Films(args.seed)
    engine, *_ = dmt_plugin.initialize(
        args=args, model=model, model_parameters=model.parameters(), example_batch=example_batch()
    )
    rank, world, size = dist.get_rank(), dist.get_world_size(), engine.train_micro_batch_size_per_gpu()
    losses = []
    for step in range(args.steps):
        features, label = films.batch(size, 1 + step * world + rank)
        loss = binary_cross_entropy_with_logits(engine(features.to(engine.device)), label.to(engine.device))
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    ends = torch.stack([torch.stack(own).mean() for own in (losses[:20], losses[-20:])])
    dist.all_reduce(ends)
    if rank == 0:
        first, last = (ends / world).tolist()
        print(json.dumps({"world": world, "steps": args.steps, "first": round(first, 4), "last": round(last, 4)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
