"A program as a user would write it; mypy reads it strictly, nobody runs it."

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from twotower.base.errors import InputError, TwotowerError
from twotower.base.files import read_json
from twotower.base.tables import as_uuid
from twotower.catalogue.table import load_catalogue, read_catalogue
from twotower.database.connections import connect
from twotower.database.embeddings import recommend, similar
from twotower.database.schema import migrate
from twotower.database.videos import load_videos, save_videos
from twotower.evaluation.metrics import top_k
from twotower.model.export import onnx_embed, onnx_session
from twotower.model.features import encode
from twotower.runs.run import META, ONNX, Run, all_runs, find_run


def places(run: Run) -> np.ndarray:
    rows, report = encode(read_json(run.model / META)['encoding'], 'item', pa.table({'title': ['Night train']}))
    assert report['missing_columns']
    vectors: np.ndarray = onnx_embed(onnx_session(run.model / ONNX), 'item', rows)
    return vectors


def into_the_database(file: Path) -> list[str]:
    with connect() as conn:
        applied: list[str] = migrate(conn)
        changed: int = save_videos(conn, read_catalogue(file))
        videos: pa.Table = load_videos(conn)
        shown: pd.DataFrame = recommend(conn, as_uuid('anna'), 5)
        near: pd.DataFrame = similar(conn, str(videos['video_id'][0]), 5)
    return [*applied, f'{changed} {len(shown)} {len(near)}']


def ids(outputs: Path | None = None) -> list[str]:
    try:
        return [run.id for run in all_runs(outputs)] + [find_run('stable').id]
    except TwotowerError as error:
        raise InputError(str(error)) from error


counts: dict[str, object] = load_catalogue('videos.csv')
wrong: int = find_run('stable')  # type: ignore[assignment]  # mypy must see that this is a Run
wrong_too = top_k(scores='none')  # type: ignore[call-arg]  # and that nothing is called scores
