"""A made-up shop with wide features, as tensors: 50,000 videos with 4096 tags and 1024 performers, users with histories. Used by train.py and infer.py."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse

from twotower.learning.training_set import TrainingSet, training_set
from twotower.model.sparse_rows import Rows

VIDEOS, TAGS, PERFORMERS, MAKERS, BUCKETS = 50_000, 4096, 1024, 300, 1024
TENSORS = 'kinds', 'videos', 'weights', 'own', 'rated'


def zipf(rng: np.random.Generator, words: int, n: int) -> np.ndarray:
    "Draw words by a shifted Zipf law."
    chances = np.cumsum((np.arange(words) + 50.0) ** -0.8)
    return np.searchsorted(chances, rng.random(n) * chances[-1]).astype(np.int32)


def multi_hot(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    "Rows of length 1."
    matrix = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)
    counts = np.diff(matrix.indptr)
    matrix.data = np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts).astype(np.float32)
    return matrix


def words(rng: np.random.Generator, n: int, width: int, each: int) -> sparse.csr_matrix:
    "So many words for each of n rows."
    return multi_hot(np.repeat(np.arange(n, dtype=np.int32), each), zipf(rng, width, n * each), (n, width))


def item_parts(rng: np.random.Generator, n: int, likes: np.ndarray | None = None) -> dict[str, sparse.csr_matrix]:
    "Features of n videos; about 27 numbers in a row."
    own = np.arange(n, dtype=np.int32) % VIDEOS
    popularity = rng.normal(size=n) if likes is None else (np.log1p(likes) - np.log1p(likes).mean()) / 2
    return {
        'video': sparse.csr_matrix((np.ones(n, np.float32), own, np.arange(n + 1)), (n, VIDEOS)),
        'tags': words(rng, n, TAGS, 6), 'performers': words(rng, n, PERFORMERS, 2), 'maker': words(rng, n, MAKERS, 1),
        'release': words(rng, n, 16, 1), 'popularity': sparse.csr_matrix(popularity[:, None].astype(np.float32)),
        'title': words(rng, n, BUCKETS, 16),
    }  # fmt: skip


def side(parts: dict[str, sparse.csr_matrix], histories: tuple[str, ...]) -> dict:
    "The segments of one side, as far as training reads them."
    segments, offset = [], 0
    for name, part in parts.items():
        vocabulary = {'vocabulary': 'video'} if name in histories else {}
        segments.append({'name': name, 'offset': offset, 'width': part.shape[1]} | vocabulary)
        offset += part.shape[1]
    return {'segments': segments}


def make(interactions: int, seed: int = 0) -> tuple[TrainingSet, sparse.csr_matrix, sparse.csr_matrix]:
    "A training set with about so many opinions, 50 of each user on average; features of users and of videos."
    rng = np.random.default_rng(seed)
    n = interactions // 50
    activity = np.cumsum(rng.pareto(1.5, n) + 0.3)
    who = np.searchsorted(activity, rng.random(interactions) * activity[-1]).astype(np.int32)
    what = rng.permutation(VIDEOS).astype(np.int32)[zipf(rng, VIDEOS, interactions)]
    said = sparse.csr_matrix((np.ones(interactions, np.float32), (who, what)), (n, VIDEOS))
    who, what = np.repeat(np.arange(n, dtype=np.int32), np.diff(said.indptr)), said.indices
    kind = rng.choice(3, len(who), p=[0.7, 0.15, 0.15])
    histories = ('liked', 'disliked', 'neutral')
    users = {
        name: multi_hot(who[kind == k], what[kind == k], (n, VIDEOS)) for k, name in enumerate(histories)
    } | {
        'preferred_tags': words(rng, n, TAGS, 10), 'preferred_performers': words(rng, n, PERFORMERS, 5),
        'like_count': sparse.csr_matrix(rng.normal(size=(n, 1)).astype(np.float32)),
    }  # fmt: skip
    items = item_parts(rng, VIDEOS, np.bincount(what, minlength=VIDEOS))
    names = [f'v{i}' for i in range(VIDEOS)]
    encoding = {'vocabularies': {'video': names}, 'item': side(items, ('video',)), 'user': side(users, histories)}
    weights, labels = (
        sparse.csr_matrix((np.where(kind == 0, a, b).astype(np.float32), said.indices, said.indptr), said.shape)
        for a, b in ((1, 0.25), (2, 1))
    )
    users, items = (sparse.hstack(list(parts.values()), 'csr', np.float32) for parts in (users, items))
    return training_set(encoding, users, items, pa.array(names), weights, labels), users, items


def save(data: TrainingSet, path: Path) -> None:
    "Write a training set as tensors."
    rows = {
        f'{name}.{part}': getattr(getattr(data, name), part)
        for name in ('users', 'items', 'pairs')
        for part in ('starts', 'columns', 'values')
    }
    torch.save(rows | {name: getattr(data, name) for name in TENSORS} | {'widths': list(data.widths)}, path)


def load(path: Path) -> TrainingSet:
    "Read a training set."
    parts = torch.load(path, weights_only=True)
    rows = {
        name: Rows(*(parts[f'{name}.{part}'] for part in ('starts', 'columns', 'values')))
        for name in ('users', 'items', 'pairs')
    }
    return TrainingSet(**rows, **{name: parts[name] for name in TENSORS}, widths=tuple(parts['widths']))
