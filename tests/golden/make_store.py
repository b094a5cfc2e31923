"""Write tests/golden/store_vN: what this version publishes, for later versions to read. Run once per format, before a release.

python tests/golden/make_store.py store_v1
"""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

RUN, PROJECT = '20260101_000000', Path(__file__).parents[2]
GENRES = ('Comedy', 'War', 'Drama', 'Western')


def write_ratings(folder: Path) -> None:
    "Two dozen users, each with two genres that they like, and twenty films."
    chance = random.Random(0)
    with open(folder / 'movies.csv', 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['movieId', 'title', 'genres'])
        rows.writerows([i, f'Film {i} ({1980 + i})', GENRES[i % 4]] for i in range(1, 21))
    with open(folder / 'ratings.csv', 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['userId', 'movieId', 'rating', 'timestamp'])
        for user in range(1, 25):
            for film in chance.sample(range(1, 21), 12):
                stars = chance.choice((4, 5)) if film % 2 == user % 2 else chance.choice((1, 2, 3))
                rows.writerow([user, film, stars, 1_700_000_000 + 86_400 * film + user])


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        shutil.copy(PROJECT / 'settings.ini', home)
        write_ratings(home)
        environment = os.environ | {'TWOTOWER_HOME': name, 'PYTHONPATH': str(PROJECT)}
        data = f'input=data/{home.name}/reviews.csv'
        settings = [data, 'hidden=4', 'epochs=20', 'min_recall=0', 'min_ndcg=0', 'min_auc=0']
        settings += [
            'inner_ratio=0.4',
            'taste_learning_rate=0.05',
            'max_log_loss=9',
        ]  # of so few opinions enough dislikes must be set aside for a taste
        for command in (
            ['movielens', name],
            ['run', 'ci', '--run-id', RUN, '--to', '05_publish', *(x for s in settings for x in ('-p', s))],
        ):
            subprocess.run(
                [sys.executable, '-c', 'from twotower.cli import main; main()', *command],
                env=environment,
                cwd=name,
                check=True,
            )
        for folder in ('runs', 'activations', 'latest'):
            shutil.copytree(home / 'outputs' / 'store' / 'two_tower' / folder, target / 'two_tower' / folder)
        for side, file in (('item', 'item_features'), ('user', 'user_features')):
            rows = pq.read_table(home / 'outputs' / 'runs' / RUN / 'prep' / f'{file}.parquet').to_pylist()[:8]
            (target / f'{side}s.json').write_text(json.dumps(rows, default=str, indent=1) + '\n')


if __name__ == '__main__':
    main(Path(__file__).parent / sys.argv[1])
