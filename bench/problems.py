"""What the bench asks: the same ratings, divided in four ways."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from twotower.core import ITEM_FEATURES, USER, USER_FEATURES, VIDEO, as_uuid, read_table
from twotower.movielens import fetch_wheel, read_ml100k, read_movielens_folder, write_reviews
from twotower.prep import draw_negatives, item_features, judge, match_videos, merge_sources, split, user_features
from twotower.runs import ITEMS, TRAIN, USERS
from twotower.sources import REVIEWS, read_source, workspace

SPLITS = {
    'random': 'a random fifth of each history is held out',
    'time': 'the newest fifth of all ratings is held out; users without an older one are left out',
    'users': 'a fifth of the users is never trained on; four fifths of their history are shown, the rest is held out',
    'cold': 'a tenth of the videos is never trained on; who likes them?',
}
EVERYONE, CATALOGUE, HISTORY, HELD = 'everyone.parquet', 'catalogue.parquet', 'history.parquet', 'held.parquet'
LIKED, DISLIKED = 4.0, 2.0  # from here on, and up to here


@dataclass(frozen=True)
class Problem:
    "Ratings as stars, row by row the same users, column by column the same videos."

    folder: Path  # what may be learnt from, as 01_prep leaves it
    everyone: pa.Table  # USER_FEATURES of all users, from what is shown of them
    catalogue: pa.Table  # ITEM_FEATURES of all videos; those that arrived after training have no popularity
    train: sparse.csr_matrix  # (n_users, n_items): stars that may be learnt from
    history: sparse.csr_matrix  # (n_users, n_items): stars that are shown when it is time to recommend
    held: sparse.csr_matrix  # (n_users, n_items): stars to be foretold
    cold: np.ndarray  # (n_items,): arrived after training


def likes(
    stars: sparse.csr_matrix,  # (n_users, n_items)
    other: float = 0.0,  # weight of what was seen and is no like
) -> sparse.csr_matrix:  # float32, 1 for a like
    "Likes of a matrix of stars."
    weights = np.where(stars.data >= LIKED, 1.0, other).astype(np.float32)
    matrix = sparse.csr_matrix((weights, stars.indices, stars.indptr), stars.shape, copy=True)
    matrix.eliminate_zeros()
    return matrix


@contextmanager
def ratings(
    folder: Path | None,  # with ratings.csv and movies.csv; None: MovieLens-100K
    draft: Path,  # a folder for the CSV that prep reads
    threads: int = 1,  # of DuckDB
):  # a workspace with the tables `videos` and `opinions`
    "Read a data set the way 01_prep does."
    data = read_ml100k(fetch_wheel()) if folder is None else read_movielens_folder(folder)
    write_reviews(data, draft / 'reviews.csv')
    ids = pa.array([as_uuid(url) for url in data.videos['product_url'].to_pylist()], pa.string())
    with workspace(threads=threads) as con:
        con.register('master', data.videos.set_column(0, VIDEO, ids))
        con.execute('CREATE TABLE videos AS SELECT * FROM master')
        read_source(con, draft / 'reviews.csv', REVIEWS, 'reviews')
        match_videos(con, 'reviews')
        judge(con, 'reviews', LIKED, DISLIKED)
        merge_sources(con, ['reviews'])
        yield con


def _chosen(con: duckdb.DuckDBPyConnection, column: str, share: float, seed: int, where: str = 'true') -> None:
    "Make the table `chosen`: a random share of the values of a column of `opinions`."
    luck = f"md5_number_lower('bench {seed}' || {column})"
    con.execute(f"""
        CREATE OR REPLACE TABLE chosen AS
        SELECT {column} FROM (
            SELECT {column}, row_number() OVER (ORDER BY {luck}, {column}) <= floor(count(*) OVER () * {share} + 0.5) AS is_chosen
            FROM (SELECT DISTINCT {column} FROM opinions WHERE {where})
        ) WHERE is_chosen
    """)


def divide(
    con: duckdb.DuckDBPyConnection,  # a workspace with the table `opinions`
    kind: str,  # one of `SPLITS`
    seed: int,  # another seed, another division
) -> None:
    "Make the tables `train`, `history` and `held` from `opinions`; `arrivals` holds the videos that come after training."
    split(con, 0.2, 'time' if kind == 'time' else 'user', seed)
    con.execute('CREATE OR REPLACE TABLE arrivals AS SELECT video_id FROM opinions WHERE false')
    con.execute('CREATE OR REPLACE TABLE history AS FROM train; CREATE OR REPLACE TABLE held AS FROM val')
    if kind == 'users':
        _chosen(con, USER, 0.2, seed)
        con.execute("""
            CREATE OR REPLACE TABLE train AS FROM opinions ANTI JOIN chosen USING (user_id);
            CREATE OR REPLACE TABLE history AS FROM train UNION ALL FROM history SEMI JOIN chosen USING (user_id);
            CREATE OR REPLACE TABLE held AS FROM held SEMI JOIN chosen USING (user_id)
        """)
    if kind == 'cold':
        _chosen(con, VIDEO, 0.1, seed, "kind = 'like'")
        con.execute("""
            CREATE OR REPLACE TABLE arrivals AS FROM chosen;
            CREATE OR REPLACE TABLE train AS FROM train ANTI JOIN chosen USING (video_id);
            CREATE OR REPLACE TABLE history AS FROM train;
            CREATE OR REPLACE TABLE held AS
                FROM held ANTI JOIN chosen USING (video_id) UNION ALL FROM opinions SEMI JOIN chosen USING (video_id)
        """)


def save_problem(
    con: duckdb.DuckDBPyConnection,  # a workspace after `divide`
    folder: Path,  # where to write
    seed: int,  # of the pseudo-negatives
    negatives: int = 3,  # pseudo-negatives for each like, as 01_prep draws them; 0: none
) -> None:
    "Write a problem: the files of 01_prep with what may be learnt from, and beside them what is asked."
    folder.mkdir(parents=True)
    known = 'FROM held SEMI JOIN history USING (user_id)'  # of the others nothing is shown
    for name, query in {HISTORY: 'FROM history', HELD: known}.items():
        con.execute(f"COPY (SELECT user_id, video_id, stars {query}) TO '{folder / name}'")
    item_features(con)
    con.execute("""
        UPDATE item_features SET popularity = NULL WHERE video_id IN (FROM arrivals);
        CREATE OR REPLACE TABLE learnt AS FROM train; CREATE OR REPLACE TABLE train AS FROM history
    """)
    user_features(con)
    con.execute('CREATE OR REPLACE TABLE train AS FROM learnt')
    con.execute('DELETE FROM videos WHERE video_id IN (FROM arrivals)')
    draw_negatives(con, 'train', 'SELECT user_id, video_id FROM train', negatives, None, seed)
    label = "CAST(CASE kind WHEN 'like' THEN 1 WHEN 'neutral' THEN NULL ELSE 0 END AS TINYINT) AS label"
    for name, query in {
        TRAIN: f'SELECT user_id, video_id, {label}, kind, CAST(stars AS FLOAT) AS stars, created_at FROM train',
        CATALOGUE: 'FROM item_features ORDER BY video_id',
        ITEMS: 'FROM item_features ANTI JOIN arrivals USING (video_id) ORDER BY video_id',
        EVERYONE: 'FROM user_features ORDER BY user_id',
        USERS: 'FROM user_features SEMI JOIN train USING (user_id) ORDER BY user_id',
    }.items():
        con.execute(f"COPY ({query}) TO '{folder / name}' (FORMAT parquet)")


def make_problems(
    data: Path | None,  # with ratings.csv and movies.csv; None: MovieLens-100K
    kind: str,  # one of `SPLITS`
    seed: int,  # of the division and of the pseudo-negatives
    folder: Path,  # where to write `outer` and `inner`
) -> None:
    "Write the problem of a split, and an inner one of the same kind that is made of its training part alone."
    folder.mkdir(parents=True, exist_ok=True)
    with ratings(data, folder) as con:
        divide(con, kind, seed)
        save_problem(con, folder / 'outer', seed)
        con.execute("CREATE OR REPLACE TABLE opinions AS FROM train WHERE kind <> 'pseudo'")
        divide(con, kind, seed)
        save_problem(con, folder / 'inner', seed)


def load_problem(
    folder: Path,  # written by `make_problems`
) -> Problem:  # aligned
    "Read a problem."
    everyone, catalogue = read_table(folder / EVERYONE, USER_FEATURES), read_table(folder / CATALOGUE, ITEM_FEATURES)
    users, items = everyone[USER].combine_chunks(), catalogue[VIDEO].combine_chunks()

    def matrix(table: pa.Table) -> sparse.csr_matrix:
        rows, columns = (pc.index_in(table[k], value_set=v).to_numpy() for k, v in ((USER, users), (VIDEO, items)))
        return sparse.csr_matrix((table['stars'].to_numpy(), (rows, columns)), (len(users), len(items)), np.float32)

    train = pq.read_table(folder / TRAIN, columns=[USER, VIDEO, 'stars', 'kind'])
    learnt = train.filter(pc.not_equal(train['kind'], 'pseudo'))
    known = read_table(folder / ITEMS, ITEM_FEATURES)[VIDEO].combine_chunks()
    cold = ~pc.is_in(items, value_set=known).to_numpy(zero_copy_only=False)
    parts = (matrix(pq.read_table(folder / name)) for name in (HISTORY, HELD))
    return Problem(folder, everyone, catalogue, matrix(learnt), *parts, cold)
