"""The steps of 01_prep in reviews mode, written plainly in pandas: the same rules, so the same rows.

Shared with the library are only the formulas that its notebook states (the hash, the luck of a pair, the walk).
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

MERSENNE = 2**31 - 1


def hashed(word: str, seed: int, text: str) -> int:
    return int.from_bytes(hashlib.md5(f'{seed} {word} {text}'.encode()).digest()[8:], 'little')


def prime_from(n: int) -> int:
    return next(p for p in range(max(n, 2), 2 * n + 3) if all(p % d for d in range(2, int(p**0.5) + 1)))


def read(path: Path, videos: pd.DataFrame, min_stars: float, max_negative_stars: float) -> pd.DataFrame:
    rows = pd.read_csv(path, dtype={'product_url': str, 'reviewer_id': str})
    rows['created_at'] = pd.to_datetime(rows['reviewed_at'], utc=True, format='ISO8601')
    urls = videos.assign(url=videos['product_url'].str.rstrip('/'))[['url', 'video_id']]
    rows = (
        rows.assign(url=rows['product_url'].str.rstrip('/'))
        .merge(urls, on='url')
        .rename(columns={'reviewer_id': 'user_id'})
    )
    stars = rows['stars']
    rows['kind'] = np.select([stars >= min_stars, stars <= max_negative_stars], ['like', 'dislike'], 'neutral')
    rows = rows.sort_values(['user_id', 'video_id', 'created_at', 'stars'], ascending=[True, True, False, False])
    return rows.drop_duplicates(['user_id', 'video_id'])[['user_id', 'video_id', 'kind', 'stars', 'created_at']]


def split(rows: pd.DataFrame, val_ratio: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    users, videos = rows['user_id'].unique(), rows['video_id'].unique()
    a = pd.Series({u: max(hashed('a', seed, u) % MERSENNE, 1) for u in users})
    b = pd.Series({u: hashed('b', seed, u) % MERSENNE for u in users})
    c = pd.Series({v: hashed('c', seed, v) % MERSENNE for v in videos})
    rows['luck'] = (rows['user_id'].map(a) * rows['video_id'].map(c) + rows['user_id'].map(b)) % MERSENNE
    rows = rows.sort_values(['user_id', 'luck', 'video_id'])
    groups = rows.groupby('user_id')['luck']
    n = groups.transform('size')
    held_out = groups.cumcount() < np.minimum(np.floor(n * val_ratio + 0.5), n - 1)
    rows = rows.drop(columns='luck')
    return rows[~held_out], rows[held_out]


def negatives(
    train: pd.DataFrame, val: pd.DataFrame, videos: pd.DataFrame, per_positive: int, seed: int
) -> list[pd.DataFrame]:
    catalogue = np.sort(videos['video_id'].to_numpy())
    n, p = len(catalogue), prime_from(len(catalogue))
    seen_in_val = val.groupby('user_id')['video_id'].agg(set).to_dict()
    need_in_val = (per_positive * (val['kind'] == 'like').groupby(val['user_id']).sum()).to_dict()
    drawn = [], []
    for user, rows in train.groupby('user_id'):
        step, stop, room = 1 + hashed('step', seed, user) % (p - 1), hashed('start', seed, user) % p, p
        seen = set(rows['video_id'])
        need = per_positive * (rows['kind'] == 'like').sum()
        for part in (0, 1):
            while need > 0 and room > 0:
                if stop < n and catalogue[stop] not in seen:
                    drawn[part].append((user, catalogue[stop]))
                    need -= 1
                stop, room = (stop + step) % p, room - 1
            seen |= seen_in_val.get(user, set())
            need = need_in_val.get(user, 0)
    return [pd.DataFrame(d, columns=['user_id', 'video_id']).assign(kind='pseudo') for d in drawn]


def preferred(likes: pd.DataFrame, videos: pd.DataFrame, column: str, k: int = 20) -> pd.Series:
    words = videos[['video_id', column]].explode(column).dropna()
    counts = likes.merge(words, on='video_id').groupby(['user_id', column]).size().rename('n').reset_index()
    counts = counts.sort_values(['user_id', 'n', column], ascending=[True, False, True])
    return counts.groupby('user_id').head(k).groupby('user_id')[column].agg(list)


def user_features(train: pd.DataFrame, videos: pd.DataFrame, max_history: int) -> pd.DataFrame:
    now = train['created_at'].max()
    rows = train.sort_values(['user_id', 'created_at', 'video_id'], ascending=[True, False, True])
    out = pd.DataFrame(index=pd.Index(np.sort(rows['user_id'].unique()), name='user_id'))
    for name, kind in {'positive': 'like', 'negative': 'dislike', 'neutral': 'neutral'}.items():
        chosen = rows[rows['kind'] == kind].groupby('user_id').head(max_history)
        out[f'recent_{name}_video_ids'] = chosen.groupby('user_id')['video_id'].agg(list)
    likes = rows[rows['kind'] == 'like']
    fresh = rows[rows['created_at'] > now - pd.Timedelta(days=30)]
    fresh_likes = fresh[fresh['kind'] == 'like'].groupby('user_id').size()
    judged = fresh[fresh['kind'] != 'neutral']
    out['like_count'] = likes.groupby('user_id').size().reindex(out.index, fill_value=0)
    out['like_count_30d'] = fresh_likes.reindex(out.index, fill_value=0)
    out['positive_ratio_30d'] = (judged['kind'] == 'like').groupby(judged['user_id']).mean()
    out['signup_days'] = (now - rows.groupby('user_id')['created_at'].min()).dt.total_seconds() / 86400
    for column, name in {
        'tags': 'preferred_tag_ids',
        'performers': 'preferred_performer_ids',
        'maker': 'preferred_makers',
    }.items():
        out[name] = preferred(likes, videos, column)
    return out.reset_index()


def prepare(path: Path, videos: pd.DataFrame, folder: Path, config) -> None:
    train, val = split(read(path, videos, config.min_stars, config.max_negative_stars), config.val_ratio, config.seed)
    users = user_features(train, videos, config.max_history)
    likes = (train['kind'] == 'like').groupby(train['video_id']).sum()  # of no opinion at all: none
    items = videos.drop(columns='content_id').sort_values('video_id')
    items['popularity'] = items['video_id'].map(likes).astype('Int32')
    pseudo = negatives(train, val, videos, config.neg_per_pos, config.seed)
    summary = {}
    for name, rows, drawn in [('train', train, pseudo[0]), ('val', val, pseudo[1])]:
        rows = pd.concat([rows, drawn]).sort_values(['user_id', 'video_id'])
        rows['label'] = rows['kind'].map({'like': 1, 'dislike': 0, 'pseudo': 0}).astype('Int8')
        rows.to_parquet(folder / f'interactions_{name}.parquet', index=False, compression='zstd')
        summary[name] = rows['kind'].value_counts().to_dict()
    items.to_parquet(folder / 'item_features.parquet', index=False, compression='zstd')
    users.to_parquet(folder / 'user_features.parquet', index=False, compression='zstd')
    (folder / 'summary.json').write_text(json.dumps(summary))
