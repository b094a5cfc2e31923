"""Every recommender is a function of a problem that gives two matrices; the score of a video for a user is their product."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from problems import Problem, likes
from scipy import sparse

from twotower.learning.inner import train
from twotower.learning.training_set import load_prepared
from twotower.model.features import encode, fit_encoding
from twotower.model.towers import embed
from twotower.runs.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
Placed = tuple[np.ndarray | sparse.csr_matrix, np.ndarray]  # users (n_users, d), items (n_items, d), float32


@dataclass(frozen=True)
class Peer:
    "A recommender and how to search its settings."

    fit: Callable[..., Placed]  # takes a problem and settings
    grid: tuple[dict, ...] = ({},)  # settings to try
    splits: str = 'random time users'  # where it can take part
    choice: str = 'ranking'  # what its settings are chosen by: ranking (recall@20 + nDCG@20) or auc
    special: dict[str, tuple[dict, ...]] = field(default_factory=dict)  # other settings to try in some splits

    def settings(self, kind: str) -> tuple[dict, ...]:
        "What to try in a split."
        return self.special.get(kind, self.grid)


def grid(**values) -> tuple[dict, ...]:
    "All combinations."
    return tuple(dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values()))


def random(problem: Problem, seed: int = 0) -> Placed:
    "Chance."
    rng = np.random.default_rng(seed)
    shapes = (problem.train.shape[0], 32), (problem.train.shape[1], 32)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def popularity(problem: Problem, seed: int = 0) -> Placed:
    "The number of likes in training; the same list for everyone."
    counts = np.asarray(likes(problem.train).sum(0), np.float32).T
    return np.ones((problem.train.shape[0], 1), np.float32), counts


def _genres(problem: Problem) -> sparse.csr_matrix:
    "Genres of each video, rows that sum to 1."
    names = {
        name: i for i, name in enumerate(sorted({t for tags in problem.catalogue['tags'].to_pylist() for t in tags}))
    }
    rows = [[names[t] for t in tags] for tags in problem.catalogue['tags'].to_pylist()]
    place = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    weights = np.repeat([1 / max(len(row), 1) for row in rows], [len(row) for row in rows])
    return sparse.csr_matrix((weights, (place, np.concatenate(rows).astype(int))), (len(rows), len(names)))


def genre_popularity(problem: Problem, seed: int = 0) -> Placed:
    "How often a video of the same genres is liked; the same list for everyone."
    genres, counts = _genres(problem), np.asarray(likes(problem.train).sum(0)).ravel()
    by_genre = (genres.T @ counts) / np.maximum(genres[~problem.cold].sum(0).A1, 1e-9)
    return np.ones((problem.train.shape[0], 1), np.float32), (genres @ by_genre)[:, None].astype(np.float32)


def genre_profile(problem: Problem, seed: int = 0) -> Placed:
    "How often this user likes a video of the same genres."
    genres = _genres(problem)
    return (likes(problem.history) @ genres).toarray().astype(np.float32), genres.toarray().astype(np.float32)


def item_knn(problem: Problem, shrink: float, neighbours: int, other: float = 0.0, seed: int = 0) -> Placed:
    "Cosine of the columns, drawn to zero where few users have seen both; the nearest of each video count."
    x = likes(problem.train, other)
    both = (x.T @ x).toarray()
    norms = np.sqrt(both.diagonal())
    similar = both / np.maximum(np.outer(norms, norms) + shrink, 1e-9)
    np.fill_diagonal(similar, 0)
    if neighbours < len(similar):
        similar[similar < np.partition(similar, -neighbours, axis=1)[:, -neighbours, None]] = 0
    return likes(problem.history, other), similar.astype(np.float32)


def ease(problem: Problem, penalty: float, other: float = 0.0, seed: int = 0) -> Placed:
    "Steck 2019: the linear item-item model without a diagonal, in closed form."
    x = likes(problem.train, other)
    inverse = np.linalg.inv((x.T @ x).toarray() + penalty * np.eye(x.shape[1], dtype=np.float32))
    weights = inverse / -inverse.diagonal()
    np.fill_diagonal(weights, 0)
    return likes(problem.history, other), np.ascontiguousarray(weights.T)


def als(
    problem: Problem, factors: int, regularization: float, alpha: float, other: float = 0.0, seed: int = 0
) -> Placed:
    "Hu et al. 2008, by `implicit`; users without training are folded in by solving for their factors."
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(factors, regularization, alpha, iterations=20, num_threads=1, random_state=seed)
    model.fit(likes(problem.train, other), show_progress=False)
    users, new = np.array(model.user_factors), np.flatnonzero(np.diff(problem.train.indptr) == 0)
    if len(new):
        users[new] = model.recalculate_user(new, likes(problem.history, other)[new])
    return users, np.array(model.item_factors)


def bpr(
    problem: Problem, factors: int, learning_rate: float, regularization: float, epochs: int, seed: int = 0
) -> Placed:
    "Rendle et al. 2009, by `implicit`."
    from implicit.bpr import BayesianPersonalizedRanking

    settings = {'learning_rate': learning_rate, 'regularization': regularization, 'iterations': epochs}
    model = BayesianPersonalizedRanking(factors, **settings, num_threads=1, random_state=seed)
    model.fit(likes(problem.train), show_progress=False)
    return np.array(model.user_factors), np.array(model.item_factors)


def _with_biases(users: np.ndarray, user_bias: np.ndarray, items: np.ndarray, item_bias: np.ndarray) -> Placed:
    "Two more columns, so that the product is u v + bias of the user + bias of the video."
    u = np.hstack([users, user_bias[:, None], np.ones((len(users), 1))])
    return u.astype(np.float32), np.hstack([items, np.ones((len(items), 1)), item_bias[:, None]]).astype(np.float32)


def _one_last(factors: np.ndarray) -> np.ndarray:
    "What the factors and the bias of the other side are multiplied with."
    return np.hstack([factors[:, :-1], np.ones((len(factors), 1))])


def _ridge(stars: sparse.csr_matrix, fixed: np.ndarray, offset: np.ndarray, penalty: float) -> np.ndarray:
    "For each row, the weights of `fixed` that explain its stars less `offset` of their columns."
    out = np.zeros((stars.shape[0], fixed.shape[1]))
    for i in np.flatnonzero(np.diff(stars.indptr)):
        part = slice(stars.indptr[i], stars.indptr[i + 1])
        columns = stars.indices[part]
        a, y = fixed[columns], stars.data[part] - offset[columns]
        out[i] = np.linalg.solve(a.T @ a + penalty * len(columns) ** 0.5 * np.eye(a.shape[1]), a.T @ y)
    return out


def biased_mf(problem: Problem, factors: int, penalty: float, sweeps: int = 15, seed: int = 0) -> Placed:
    "Koren et al. 2009: stars = mean + bias of the user + bias of the video + product of factors, by alternating least squares."
    rng, stars = np.random.default_rng(seed), problem.train.astype(float)
    by_item, mean = stars.T.tocsr(), stars.data.mean()
    users, items = np.zeros((stars.shape[0], factors + 1)), rng.normal(0, 0.1, (stars.shape[1], factors + 1))
    items[:, -1] = 0  # the last column is the bias
    for _ in range(sweeps):
        users = _ridge(stars, _one_last(items), mean + items[:, -1], penalty)
        items = _ridge(by_item, _one_last(users), mean + users[:, -1], penalty)
    users = _ridge(problem.history.astype(float), _one_last(items), mean + items[:, -1], penalty)
    return _with_biases(users[:, :-1], users[:, -1], items[:, :-1], items[:, -1])


def _encoded(problem: Problem) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    "Users and videos as the towers see them, less the id of the video."
    config = default_config()
    limits = config.max_tag_features, config.max_performer_features, config.use_price_feature, config.use_title_feature
    encoding = fit_encoding(problem.catalogue, problem.everyone, *limits)
    users, items = encode(encoding, 'user', problem.everyone)[0], encode(encoding, 'item', problem.catalogue)[0]
    own = next(s for s in encoding['item']['segments'] if s['name'] == 'video')
    return users, items[:, own['offset'] + own['width'] :]


def lightfm(
    problem: Problem,
    factors: int,
    epochs: int,
    learning_rate: float,
    user: str = 'id',
    item: str = 'both',
    alpha: float = 0.0,
    seed: int = 0,
) -> Placed:
    "Kula 2015, WARP loss; ids, the features of the towers, or both."
    from lightfm import LightFM

    known = np.diff(problem.train.indptr) > 0, ~problem.cold
    sides = []
    for features, mode, is_known in zip(_encoded(problem), (user, item), known, strict=True):
        own = sparse.diags(is_known.astype(np.float32)).tocsr()
        features = (
            sparse.diags(1 / np.maximum(np.sqrt(features.multiply(features).sum(1).A1), 1e-9)) @ features
        )  # no louder than the id
        sides.append(
            {'id': own, 'features': features, 'both': sparse.hstack([own, features])}[mode].tocsr().astype(np.float32)
        )
    model = LightFM(
        factors, loss='warp', learning_rate=learning_rate, item_alpha=alpha, user_alpha=alpha, random_state=seed
    )
    model.fit(likes(problem.train).tocoo(), *sides, epochs=epochs, num_threads=1)
    (user_bias, users), (item_bias, items) = (
        model.get_user_representations(sides[0]),
        model.get_item_representations(sides[1]),
    )
    return _with_biases(users, user_bias, items, item_bias)


def dssm(problem: Problem, factors: int, epochs: int, learning_rate: float, seed: int = 0) -> Placed:
    "RecTools' feature two-tower, in the Python that RECTOOLS_PYTHON names: its requirements contradict ours."
    users, items = _encoded(problem)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = sparse.diags((~problem.cold).astype(np.float32)).tocsr()
        parts = {
            'likes': likes(problem.train),
            'shown': likes(problem.history),
            'users': users,
            'items': sparse.hstack([own, items]).tocsr(),
        }
        for part, matrix in parts.items():
            sparse.save_npz(folder / f'{part}.npz', matrix)
        settings = [str(x) for x in (factors, epochs, learning_rate, seed)]
        subprocess.run(
            [os.environ['RECTOOLS_PYTHON'], ROOT / 'bench' / 'dssm.py', folder, *settings],
            check=True,
            stdout=sys.stderr,
        )
        return np.load(folder / 'user_vectors.npy'), np.load(folder / 'item_vectors.npy')


def default_config(**settings) -> TrainSettings:
    "The parameters of 02_train, which are those of the demo, some of them changed."
    return TrainSettings(**settings)


def towers(problem: Problem, seed: int = 0, **settings) -> Placed:
    "Ours: the stage 02_train as it is, number of epochs chosen inside the training part."
    config = default_config(seed=seed, **settings)
    prepared = load_prepared(problem.folder, config)
    model, _, facts = train(prepared.data, config)
    print(facts, file=sys.stderr)
    users, _ = encode(prepared.encoding, 'user', problem.everyone)
    items, _ = encode(prepared.encoding, 'item', problem.catalogue)
    return embed(model.user, users), embed(model.item, items)


def _lightfm(*sides: tuple[str, str]) -> tuple[dict, ...]:
    "Settings to try, with these sides of users and videos; steps of 0.01 and 0.06 and more epochs fell behind."
    tried = grid(factors=[64], epochs=[10, 20], learning_rate=[0.03])
    return tuple(settings | {'user': u, 'item': i} for settings in tried for u, i in sides)


PEERS = {
    'random': Peer(random, splits='random time users cold'),
    'popularity': Peer(popularity),
    'popularity by genre': Peer(genre_popularity, splits='cold'),
    'genres the user likes': Peer(genre_profile, splits='cold'),
    'item-kNN': Peer(item_knn, grid(shrink=[0, 10, 50], neighbours=[50, 200, 10**9], other=[0.0, 0.5])),
    'ALS': Peer(
        als, grid(factors=[16, 32, 64], regularization=[1.0, 10.0, 30.0], alpha=[1.0, 3.0, 10.0], other=[0.0, 0.5])
    ),
    'BPR': Peer(
        bpr,
        grid(factors=[16, 64], learning_rate=[0.003, 0.01], regularization=[0.01, 0.1], epochs=[50, 100, 200]),
        'random time',
    ),
    'biased MF': Peer(biased_mf, grid(factors=[8, 32], penalty=[0.5, 1.0, 2.0, 4.0]), choice='auc'),
    'EASE (likes)': Peer(ease, grid(penalty=[30.0, 100.0, 300.0, 1000.0])),
    'EASE (all stars)': Peer(ease, grid(penalty=[30.0, 100.0, 300.0, 1000.0], other=[0.25, 0.5, 0.75])),
    'LightFM': Peer(
        lightfm,
        _lightfm(('id', 'id'), ('id', 'both'), ('both', 'both')),
        'random time users cold',
        special={
            'users': _lightfm(('features', 'both')),
            'cold': _lightfm(('id', 'features'), ('id', 'both'), ('both', 'both')),
        },
    ),
    'RecTools DSSM': Peer(dssm, grid(factors=[128], epochs=[100], learning_rate=[0.001, 0.01])),
    'our towers (BCE)': Peer(towers, ({'loss': 'bce'},), 'random time users cold'),
    'our towers': Peer(towers, splits='random time users cold'),
}

# ours with one thing changed, for choices.py; the first of each group is the default
CHOICES = {
    'loss': {
        'softmax': {},
        'softmax, 256 negatives drawn': {'negatives': 256},
        'softmax, known likes masked': {'mask_known': True},
        'softmax, dislikes count 5 times': {'hard_weight': 5.0},
        'binary': {'loss': 'bce'},
        'mixed, 20 % binary': {'loss': 'mixed', 'bce_weight': 0.2},
        'mixed, 50 % binary': {'loss': 'mixed', 'bce_weight': 0.5},
        'mixed, 80 % binary, random start': {'loss': 'mixed', 'bce_weight': 0.8, 'start': 'random'},
        'mixed, 95 % binary, random start': {'loss': 'mixed', 'bce_weight': 0.95, 'start': 'random'},
    },
    'what the input may show of a target': {
        'hide 30 %, ask for all': {},
        'hide 60 %, ask for all': {'history_dropout': 0.6},
        'hide 30 %, ask for the hidden': {'targets': 'hidden'},
        'hide one, ask for it': {'targets': 'one'},
        'hide nothing': {'history_dropout': 0.0},
    },
    'everything else': {
        'as it is': {},
        'start at random': {'start': 'random'},
        'profile always shown': {'profile_dropout': 0.0},
        'ids always shown': {'id_dropout': 0.0},
        'ids hidden of 60 %': {'id_dropout': 0.6},
        'with titles': {'use_title_feature': True},
        'no hidden layer': {'hidden': 0, 'dropout': 0.0},
        'temperature 0.13': {'temperature': 0.13},
        'temperature 0.25': {'temperature': 0.25},
        'dislikes count as seen': {'dislike_weight': 0.25},
    },
}

PEERS |= {
    f'our towers: {name}': Peer(towers, (settings,), 'random users cold')
    for group in CHOICES.values()
    for name, settings in group.items()
}
