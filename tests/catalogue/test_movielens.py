"""The loader of MovieLens data: the real wheel, a folder of one's own, and what may be wrong with either."""

import csv
from pathlib import Path

import pytest

from twotower.base.errors import InputError, OutsideError
from twotower.catalogue.movielens import WHEEL, fetch_wheel, load, read_ml100k, read_movielens_folder, write_reviews
from twotower.database.videos import load_videos

RATINGS = 'userId,movieId,rating,timestamp\n1,10,4.5,881250949\n2,10,0.5,881250950\n2,30,3.0,881250951\n'
MOVIES = (
    'movieId,title,genres\n'
    '30,"Amélie (Fabuleux destin d\'Amélie Poulain, Le) (2001)",Comedy|Romance\n'
    '10,"American President, The (1995)",Drama\n'
    '20,"The ""Unseen""",(no genres listed)\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own = tmp_path / "o'wn set"
    own.mkdir()
    (own / 'ratings.csv').write_text(RATINGS, encoding='utf-8')
    (own / 'movies.csv').write_text(MOVIES, encoding='utf-8')
    return own


@pytest.fixture(scope='module')
def ml100k():
    return read_ml100k(fetch_wheel())


def test_the_wheel_holds_what_is_known_of_ml100k(ml100k, tmp_path):
    write_reviews(ml100k, tmp_path / 'reviews.csv')
    with open(tmp_path / 'reviews.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100_000
    assert len({r['reviewer_id'] for r in rows}) == len(ml100k.users) == 943
    assert len({r['product_url'] for r in rows}) == len(ml100k.videos) == 1682
    assert sum(float(r['stars']) >= 4 for r in rows) == 55_375
    assert rows[0] == {
        'product_url': 'https://movielens.org/ml-100k/movies/242',
        'reviewer_id': 'ml-100k-196',
        'stars': '3.0',
        'reviewed_at': '1997-12-04T15:55:49Z',
    }


def test_every_rating_has_its_film(ml100k):
    urls = set(ml100k.videos['product_url'].to_pylist())
    assert {url for (url,) in ml100k.reviews.project('product_url').distinct().fetchall()} == urls


def test_films_have_genres_and_years(ml100k):
    films = {v['content_id']: v for v in ml100k.videos.to_pylist()}
    assert films['ml-100k-1']['title'] == 'Toy Story'
    assert films['ml-100k-1']['tags'] == ['Animation', "Children's", 'Comedy']
    assert films['ml-100k-543']['title'] == 'Misérables, Les'
    assert sum(v['release_date'] is None for v in films.values()) == 1  # the one that is called unknown
    assert films['ml-100k-1412']['release_date'].year == 1995  # RecBole's column says V, the title knows better
    assert len({tag for v in films.values() for tag in v['tags']}) == 18


def test_the_same_data_give_the_same_file(ml100k, tmp_path):
    for name in 'ab':
        write_reviews(ml100k, tmp_path / name)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_a_cached_wheel_needs_no_index(tmp_path, monkeypatch):
    (tmp_path / WHEEL).write_bytes(fetch_wheel().read_bytes())
    monkeypatch.setenv('TWOTOWER_CACHE', str(tmp_path))
    monkeypatch.setattr('subprocess.run', lambda *_, **__: pytest.fail('asked the index'))
    assert fetch_wheel() == tmp_path / WHEEL


@pytest.mark.parametrize('damage', [lambda b: b[:-1], lambda b: b[:1000] + b'x' + b[1001:], lambda b: b''])
def test_a_damaged_cache_is_refused(tmp_path, damage):
    (tmp_path / WHEEL).write_bytes(damage(fetch_wheel().read_bytes()))
    with pytest.raises(InputError, match=r'recbole-1\.2\.1.* is damaged: sha256'):
        fetch_wheel(tmp_path)


@pytest.mark.parametrize('index', [{'PIP_NO_INDEX': '1'}, {'PIP_INDEX_URL': 'http://127.0.0.1:9/simple'}])
def test_without_index_and_cache_the_error_says_what_to_do(tmp_path, monkeypatch, index):
    nothing_else = {'PIP_CONFIG_FILE': '/dev/null', 'PIP_FIND_LINKS': '', 'PIP_EXTRA_INDEX_URL': '', 'PIP_RETRIES': '0'}
    for name, value in {**nothing_else, **index, 'TWOTOWER_CACHE': str(tmp_path / 'cache')}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OutsideError, match=r'did not deliver recbole.*put the file into .*cache.*ratings\.csv'):
        fetch_wheel()
    assert list((tmp_path / 'cache').iterdir()) == []


def test_another_wheel_from_the_index_is_refused(tmp_path, monkeypatch):
    def another(folder: Path) -> Path:
        (folder / WHEEL).write_text('something else')
        return folder / WHEEL

    monkeypatch.setattr('twotower.catalogue.movielens._download', another)
    with pytest.raises(OutsideError, match='the package index delivered recbole'):
        fetch_wheel(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_own(folder, tmp_path):
    data = read_movielens_folder(folder)
    write_reviews(data, tmp_path / 'reviews.csv')
    lines = (tmp_path / 'reviews.csv').read_text().splitlines()
    assert lines[1] == "https://movielens.org/movies/10,o'wn set-1,4.5,1997-12-04T15:55:49Z"
    assert len(lines) == 4
    videos = {v['content_id']: v for v in data.videos.to_pylist()}
    assert list(videos) == ['movielens-10', 'movielens-20', 'movielens-30']
    assert videos['movielens-30']['title'] == "Amélie (Fabuleux destin d'Amélie Poulain, Le)"
    assert videos['movielens-30']['release_date'].year == 2001
    assert (videos['movielens-20']['title'], videos['movielens-20']['tags']) == ('The "Unseen"', [])


@pytest.mark.parametrize('write', [lambda t: '\ufeff' + t, lambda t: t.replace('\n', '\r\n'), lambda t: t.rstrip()])
def test_other_ways_to_write_a_csv_mean_the_same(folder, write):
    before = read_movielens_folder(folder)
    expected = before.reviews.fetchall(), before.videos
    for name in ('ratings.csv', 'movies.csv'):
        text = (folder / name).read_text(encoding='utf-8')
        (folder / name).write_text(write(text), encoding='utf-8', newline='')
    after = read_movielens_folder(folder)
    assert after.reviews.fetchall() == expected[0]
    assert after.videos.equals(expected[1])


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('ratings.csv', None, r'ratings\.csv does not exist'),
        ('movies.csv', None, r'movies\.csv does not exist'),
        ('ratings.csv', '', r"ratings\.csv line 1: columns \['movieId', 'rating', 'timestamp', 'userId'\] are missing"),
        ('ratings.csv', 'userId,movieId,timestamp\n', r"ratings\.csv line 1: columns \['rating'\] are missing"),
        ('movies.csv', 'movieId,name,genres\n', r"movies\.csv line 1: columns \['title'\] are missing"),
        ('movies.csv', MOVIES + '10,Again,Drama\n', r'movies\.csv: movieId 10 is listed more than once'),
        ('movies.csv', MOVIES + '11,Two,Drama,many\n', r'movies\.csv: .*Line: 5'),
        ('movies.csv', MOVIES.encode() + b'11,Caf\xe9,Drama\n', r'movies\.csv: .*Line: 5.*utf-8'),
        ('ratings.csv', RATINGS + '1,30,many,0\n', r'ratings\.csv: .*Line: 5.*rating'),
        ('ratings.csv', RATINGS + '1,30,4,yesterday\n', r'ratings\.csv: .*Line: 5.*timestamp'),
        ('ratings.csv', RATINGS + '1,30\n', r'ratings\.csv: .*Line: 5'),
    ],
)
def test_bad_files_are_refused_by_name(folder, tmp_path, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f'(?s){message}'):
        write_reviews(read_movielens_folder(folder), tmp_path / 'reviews.csv')
    assert not (tmp_path / 'reviews.csv').exists()


def test_load_brings_all_into_the_pipeline(home, database):
    loaded = load(conn=database)
    assert loaded == {
        'name': 'ml-100k',
        'reviews': str(home / 'data' / 'ml-100k' / 'reviews.csv'),
        'n_reviews': 100_000,
        'n_videos': 1682,
        'n_users': 943,
        'videos_changed': 1682,
        'users_new': 943,
        'decisions_changed': 100_000,
    }
    videos = {v['content_id']: v for v in load_videos(database).to_pylist()}
    assert len(videos) == 1682
    assert sorted(videos['ml-100k-1']['tags']) == ['Animation', "Children's", 'Comedy']
    assert videos['ml-100k-1']['source'] == 'ml-100k'
    content = Path(loaded['reviews']).read_bytes()
    assert load() == loaded | {
        'videos_changed': 0,
        'users_new': 0,
        'decisions_changed': 0,
    }  # once more, through the installation's database
    assert Path(loaded['reviews']).read_bytes() == content


def test_a_folder_and_ml100k_fit_in_one_database(folder, home, database):
    load(conn=database)
    assert load(folder, database)['videos_changed'] == 3
    assert len(load_videos(database)) == 1685
    assert (home / 'data' / folder.name / 'reviews.csv').is_file()


def test_bad_ratings_leave_the_database_alone(folder, database):
    (folder / 'ratings.csv').write_text(RATINGS + '1,30,many,0\n')
    with pytest.raises(InputError, match='ratings'):
        load(folder, database)
    assert len(load_videos(database)) == 0
