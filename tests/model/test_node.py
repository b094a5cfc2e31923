"Another language reads model_meta.json and the ONNX file, and says the same: the proof is a program in examples/node."

import hashlib
import json
import os
import shutil
import subprocess
import unicodedata
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twotower.base.files import atomic_folder, write_json
from twotower.base.tables import ITEM_FEATURES, USER_FEATURES
from twotower.learning.training_set import history_places
from twotower.model.export import export_onnx, export_sparse_onnx, onnx_embed, onnx_session
from twotower.model.features import encode, fit_encoding, pad
from twotower.model.towers import TwoTower, embed_taste
from twotower.runs.run import META, ONNX, SPARSE_ONNX

EXAMPLE = Path(__file__).parents[2] / 'examples' / 'node'
GOLDEN = Path(__file__).parents[1] / 'golden'


def run(*command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f'{command[0]} failed:\n{done.stdout}\n{done.stderr}'
    return done.stdout


@pytest.fixture(scope='session')
def node(tmp_path_factory):
    "A folder with the example and its packages, which stay in the user's cache, by the hash of their lock file."
    for program in ('node', 'npm'):
        assert shutil.which(program), f'{program} is not on the PATH: the tests need Node.js 18 or newer, with npm'
    lock = (EXAMPLE / 'package-lock.json').read_bytes()
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'twotower'
    packages = cache / f'node-{hashlib.sha256(lock).hexdigest()[:16]}'
    if not packages.exists():
        with atomic_folder(packages) as draft:
            for name in ('package.json', 'package-lock.json', '.npmrc'):
                shutil.copy(EXAMPLE / name, draft)
            run('npm', 'ci', '--no-audit', '--no-fund', folder=draft)
    folder = tmp_path_factory.mktemp('node')
    for path in EXAMPLE.glob('*.mjs'):
        shutil.copy(path, folder)
    shutil.copy(EXAMPLE / 'package.json', folder)
    (folder / 'node_modules').symlink_to(packages / 'node_modules')
    return folder


def ask(node, expression, **values):
    "The value of a JavaScript expression that may use the exports of twotower.mjs as `t` and the given values."
    (node / 'values.json').write_text(json.dumps(values), encoding='utf-8')
    names = ', '.join(values)
    program = f"""
        import * as t from './twotower.mjs';
        import {{ readFileSync }} from 'node:fs';
        const {{ {names} }} = JSON.parse(readFileSync('values.json', 'utf8'));
        console.log(JSON.stringify({expression}));
    """
    return json.loads(run('node', '--input-type=module', '-e', program, folder=node))


def refused(node, meta, side, row):
    "What the program says of a row that it does not take."
    return ask(node, '(() => { try { t.encode(meta, side, [row]); } catch (e) { return e.message; } })()',
               meta=meta, side=side, row=row)  # fmt: skip


# What a shop may send: Japanese, full width, emoji, nothing, words that nobody knows, fields that nobody knows.

TITLES = [
    '猫の映画 第２巻',
    'ＡＢＣ ﾃｽﾄ',
    'ΟΔΥΣΣΕΥΣ İstanbul ẞ',
    '🎬👩‍👩‍👧 movie',
    '',
    None,
    'ｶﾞｷﾞ',
    'e\u0301 é',
    'a',
    'constructor',
]
TAGS = [['drama', 'war'], ['drama', 'drama'], [], None, ['opera'], ['war', None], ['__proto__', 'war'], ['戦争'], ['drama'], ['art']]  # fmt: skip
ITEMS = [
    {
        'video_id': f'v{i}',
        'title': TITLES[i],
        'tags': TAGS[i],
        'performers': [['猫'], ['犬', '猫'], []][i % 3],
        'maker': ['M', None, 'constructor', 'unknown maker'][i % 4],
        'source': 's',
        'release_date': None if i == 3 else str(date(1969, 12, 28) + timedelta(days=i * 1234)),
        'duration': [90, 12.5, None, 0][i % 4],
        'popularity': i**4,
        'price': 100 * i,
        'mood': 'calm',
    }
    for i in range(10)
]
USERS = [
    {
        'user_id': f'u{i}',
        'recent_positive_video_ids': [f'v{j}' for j in range(i)],
        'recent_negative_video_ids': [['v9', 'v9', 'gone'], None][i % 2],
        'preferred_tag_ids': TAGS[i],
        'like_count': i,
        'like_count_30d': [None, 1, 10**9][i % 3],
        'positive_ratio_30d': i / 9,
        'signup_days': 0.5 * i,
    }
    for i in range(10)
]


def typed(rows, schema):
    "Rows of JSON as a table: the fields that the schema knows, dates as dates."
    known = [{k: v for k, v in row.items() if k in schema.names} for row in rows]
    for row in known:
        if row.get('release_date'):
            row['release_date'] = date.fromisoformat(row['release_date'])
    return pa.Table.from_pylist(known, schema)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A folder with a model of random weights, and its definition fitted on some of the rows."
    folder = tmp_path_factory.mktemp('model')
    items, users = typed(ITEMS[:7], ITEM_FEATURES), typed(USERS[:7], USER_FEATURES)
    encoding = fit_encoding(items, users, use_price_feature=True, use_title_feature=True)
    torch.manual_seed(0)
    model = TwoTower(encoding['user']['width'], encoding['item']['width'], hidden=16)
    export_onnx(model, folder / ONNX)
    export_sparse_onnx(model, folder / SPARSE_ONNX)
    write_json(folder / META, {'model': model.config, 'encoding': encoding})
    return folder


def test_ten_items_and_ten_users_have_the_same_embeddings(node, exported):
    for name, rows in [('items.json', ITEMS), ('users.json', USERS)]:
        (node / name).write_text(json.dumps(rows), encoding='utf-8')
    said = json.loads(run('node', 'embed.mjs', str(exported), 'items.json', 'users.json', folder=node))
    encoding, session = json.loads((exported / META).read_text())['encoding'], onnx_session(exported / ONNX, threads=1)
    kinds = set()
    for side, rows, schema in [('item', ITEMS, ITEM_FEATURES), ('user', USERS, USER_FEATURES)]:
        matrix, report = encode(encoding, side, typed(rows, schema))
        ours = onnx_embed(session, side, matrix)
        theirs = np.array([row['embedding'] for row in said[side]['embeddings']])
        assert theirs.shape == (10, 128)
        assert np.abs(theirs - ours).max() < 1e-5
        assert said[side]['report']['unknownWords'] == report['unknown_words'] != {}
        kinds |= {s['kind'] for s in encoding[side]['segments']}
    assert kinds == {'multi_hot', 'one_hot', 'numeric', 'binned', 'hashed'}
    assert said['item']['report']['ignoredColumns'] == ['mood']
    missing = ['recent_neutral_video_ids', 'preferred_performer_ids', 'preferred_makers']
    assert said['user']['report']['missingColumns'] == missing
    assert [row['video_id'] for row in said['item']['embeddings']] == [row['video_id'] for row in ITEMS]


def test_vectors_are_the_same_number_by_number(node, exported):
    meta = json.loads((exported / META).read_text())
    for side, rows, schema in [('item', ITEMS, ITEM_FEATURES), ('user', USERS, USER_FEATURES)]:
        ours = encode(meta['encoding'], side, typed(rows, schema))[0].toarray()
        theirs = ask(node, '[...t.encode(meta, side, rows).vectors.data]', meta=meta, side=side, rows=rows)
        np.testing.assert_allclose(np.reshape(theirs, ours.shape), ours, atol=1e-6)


def test_what_a_shop_says_of_its_users_gives_the_same_numbers(node):
    countries, ages = (
        ['日本', 'constructor', '日本', None, 'constructor'] * 2,
        [18, None, 31.5, 44, -7, 1e9, 0, 18, 65, 20],
    )
    table = typed(USERS, USER_FEATURES)
    table = table.append_column('own:国', [pa.array(countries)]).append_column(
        'own:age', [pa.array(ages, pa.float64())]
    )
    encoding = fit_encoding(typed(ITEMS, ITEM_FEATURES), table)
    assert [s['name'] for s in encoding['user']['segments'][-2:]] == ['own:国', 'own:age']
    asked = [(countries[i], ages[i]) for i in range(10)] + [('__proto__', 31.49), ('日本', None), (None, None)]
    rows = [
        {'user_id': 'u'} | {n: x for n, x in zip(('own:国', 'own:age'), pair, strict=True) if x is not None}
        for pair in asked
    ]
    words, numbers = (list(x) for x in zip(*asked, strict=True))
    given = pa.table({'user_id': ['u'] * 13, 'own:国': words, 'own:age': pa.array(numbers, pa.float64())})
    ours, report = encode(encoding, 'user', given)
    theirs = ask(node, 't.encode(meta, "user", rows)', meta={'encoding': encoding}, rows=rows)
    assert list(theirs['vectors']['data'].values()) == ours.toarray().ravel().tolist()
    assert theirs['report']['unknownWords'] == report['unknown_words'] == {'own:国': 1}
    words_and_bins = [int(n) for n in ours.toarray().sum(1)]
    assert words_and_bins == [2, 1, 2, 1, 2, 2, 2, 2, 1, 2, 1, 1, 0]


def test_the_second_graph_says_what_the_first_one_says(node, exported):
    program = f"""
        import {{ InferenceSession }} from 'onnxruntime-node';
        import {{ readFileSync }} from 'node:fs';
        import {{ embed, embedSparse, encode, sparse }} from './twotower.mjs';
        const meta = JSON.parse(readFileSync('{exported / META}', 'utf8'));
        const rows = {json.dumps({'item': ITEMS, 'user': USERS})};
        const first = await InferenceSession.create('{exported / ONNX}');
        const second = await InferenceSession.create('{exported / SPARSE_ONNX}');
        const said = {{}};
        for (const side of ['item', 'user']) {{
          const {{ vectors }} = encode(meta, side, rows[side]);
          said[side] = [await embed(first, side, vectors), await embedSparse(second, side, sparse(vectors))];
          const empty = sparse({{ data: new Float32Array(0), rows: 0, width: vectors.width }});
          said[side].push(await embedSparse(second, side, empty));
        }}
        console.log(JSON.stringify(said, (_, x) => x instanceof Float32Array ? [...x] : x));
    """
    said = json.loads(run('node', '--input-type=module', '-e', program, folder=node))
    for side in ('item', 'user'):
        first, second, nothing = said[side]
        assert np.shape(first) == (10, 128)
        assert np.abs(np.array(first) - np.array(second)).max() < 1e-5
        assert nothing == []


def test_tastes_are_the_same_by_both_graphs_and_make_the_same_probability(node, exported, tmp_path):
    encoding = json.loads((exported / META).read_text())['encoding']
    torch.manual_seed(0)
    model = TwoTower(encoding['user']['width'], encoding['item']['width'], 16, history=history_places(encoding))
    for weights in model.taste.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    export_onnx(model, tmp_path / ONNX)
    export_sparse_onnx(model, tmp_path / SPARSE_ONNX)
    write_json(tmp_path / META, {'model': model.config, 'encoding': encoding})
    program = f"""
        import {{ InferenceSession }} from 'onnxruntime-node';
        import {{ embed, embedSparse, encode, hasTaste, probability, sparse }} from './twotower.mjs';
        const meta = {json.dumps({'encoding': encoding})};
        const rows = {json.dumps({'item': ITEMS, 'user': USERS})};
        const [first, second, old] = await Promise.all(
          ['{tmp_path / ONNX}', '{tmp_path / SPARSE_ONNX}', '{exported / ONNX}'].map((x) => InferenceSession.create(x)));
        const said = {{ has: [first, second, old].map(hasTaste) }};
        for (const side of ['item', 'user']) {{
          const {{ vectors }} = encode(meta, side, rows[side]);
          said[side] = [await embed(first, side, vectors, 'taste'), await embedSparse(second, side, sparse(vectors), 'taste')];
          said[`no ${{side}}`] = await embed(old, side, vectors, 'taste').catch((error) => error.message);
        }}
        said.probability = probability(said.user[0][1], said.item[0][2]);
        console.log(JSON.stringify(said, (_, x) => x instanceof Float32Array ? [...x] : x));
    """
    said = json.loads(run('node', '--input-type=module', '-e', program, folder=node))
    ours = {}
    for side, rows, schema in [('item', ITEMS, ITEM_FEATURES), ('user', USERS, USER_FEATURES)]:
        ours[side] = embed_taste(model, side, encode(encoding, side, typed(rows, schema))[0])
        for theirs in said[side]:
            assert np.shape(theirs) == (10, 34)
            assert np.abs(np.array(theirs) - ours[side]).max() < 1e-5
    assert said['probability'] == pytest.approx(1 / (1 + np.exp(-ours['user'][1] @ ours['item'][2])), abs=1e-5)
    assert said['has'] == [True, True, False]
    assert said['no user'] == 'the model has no user_taste: it was made without tastes'
    for name, rows in [('items.json', ITEMS), ('users.json', USERS)]:
        (node / name).write_text(json.dumps(rows), encoding='utf-8')
    printed = json.loads(run('node', 'embed.mjs', str(tmp_path), 'items.json', 'users.json', folder=node))
    np.testing.assert_allclose([row['taste'] for row in printed['user']['embeddings']], ours['user'], atol=1e-5)


def test_every_letter_is_made_small_the_same_way(node):
    letters = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ('Cn', 'Cs')]
    expression = """letters.map((letter) => [...letter].some((c) => /\\p{Cn}/u.test(c)) ? null
        : Array.from(letter.normalize('NFKC'), (c) => String.fromCodePoint(c.toLowerCase().codePointAt(0))).join(''))"""
    theirs = ask(node, expression, letters=letters)
    ours = pc.utf8_lower(pc.utf8_normalize(pa.array(letters), form='NFKC')).to_pylist()
    different = [(hex(ord(c)), a, b) for c, a, b in zip(letters, ours, theirs, strict=True) if b is not None and a != b]
    assert different == []
    assert sum(b is not None for b in theirs) > 200_000  # of those that both know


def test_rows_of_the_wrong_kind_are_refused_by_name(node, exported):
    meta = json.loads((exported / META).read_text())
    assert refused(node, meta, 'item', {'tags': 'war'}) == 'tags must be a list of texts, not "war"'
    assert refused(node, meta, 'item', {'tags': [1]}) == 'tags must be a list of texts, not [1]'
    assert refused(node, meta, 'item', {'maker': 7}) == 'maker must be a text, not 7'
    assert refused(node, meta, 'item', {'duration': '90'}) == 'duration must be a number, not "90"'
    for day in ('2023-02-31', '2023', 'soon', 7):
        expected = f'release_date must be a date, YYYY-MM-DD, not {json.dumps(day)}'
        assert refused(node, meta, 'item', {'release_date': day}) == expected
    meta['encoding']['input_schema_version'] = 99
    assert 'input_schema_version 99' in refused(node, meta, 'item', {})


# Every version of the definition that was ever stored can still be read.


@pytest.mark.parametrize('version', sorted(GOLDEN.glob('input_schema_v*')), ids=lambda path: path.name)
def test_a_golden_definition_gives_the_vectors_that_it_gave(node, version):
    meta, rows, expected = (
        json.loads((version / f'{name}.json').read_text()) for name in ('model_meta', 'rows', 'vectors')
    )
    for side, schema in [('item', ITEM_FEATURES), ('user', USER_FEATURES)]:
        ours, report = encode(meta['encoding'], side, typed(rows[side], schema))
        np.testing.assert_allclose(ours.toarray(), expected[side], atol=1e-6)
        said = ask(node, '(({ vectors, report }) => ({ data: [...vectors.data], report }))(t.encode(meta, side, rows))',
                   meta=meta, side=side, rows=rows[side])  # fmt: skip
        np.testing.assert_allclose(np.reshape(said['data'], ours.shape), expected[side], atol=1e-6)
        assert said['report']['unknownWords'] == report['unknown_words']


def test_an_older_vector_serves_a_model_with_more_segments(node, exported):
    older = json.loads((exported / META).read_text())['encoding']
    matrix, _ = encode(older, 'item', typed(ITEMS, ITEM_FEATURES))
    torch.manual_seed(0)
    newer = TwoTower(older['user']['width'], older['item']['width'] + 3, hidden=16)
    path = exported / 'newer.onnx'
    export_onnx(newer, path)
    completed, added = pad(matrix, older['item']['width'] + 3)
    assert added == 3
    assert completed[:, :-3].toarray().tolist() == matrix.toarray().tolist()
    assert completed[:, -3:].nnz == 0
    assert np.allclose(np.linalg.norm(onnx_embed(onnx_session(path, 1), 'item', completed), axis=1), 1)
    theirs = ask(node, '[...t.pad({ data: Float32Array.from(data), rows, width }, width + 3).data]',
                 data=matrix.toarray().ravel().tolist(), rows=10, width=matrix.shape[1])  # fmt: skip
    assert theirs == completed.toarray().ravel().tolist()


# Whatever a shop may come up with: any letters, composed or not, half and full width, words that are not there, numbers that are none, any date.

LETTERS = st.characters(exclude_categories=['Cs', 'Cn', 'Co']) | st.sampled_from('ｶﾞＡΣςİßﬁ①e\u0301\u200d🎬')
WORDS = st.text(LETTERS, max_size=5) | st.sampled_from(
    ['__proto__', 'constructor', '', 'drama', 'Ｄｒａｍａ', 'e\u0301', 'é']
)
NUMBERS = (
    st.none() | st.floats(width=32) | st.sampled_from([0.0, -1.0, 90.0, float('nan'), float('inf'), float('-inf')])
)
COUNTS = st.none() | st.integers(0, 2**31 - 1)
LISTS = st.none() | st.lists(st.none() | WORDS, max_size=4)
ANY_ITEM = st.fixed_dictionaries(
    {name: st.none() | WORDS for name in ('video_id', 'title', 'maker', 'label', 'series', 'source', 'director')}
    | {'tags': LISTS, 'performers': LISTS, 'duration': NUMBERS, 'price': NUMBERS, 'popularity': COUNTS}
    | {'release_date': st.none() | st.dates().map(str)}
)
ANY_USER = st.fixed_dictionaries(
    {name: LISTS for name in USER_FEATURES.names if pa.types.is_list(USER_FEATURES.field(name).type)}
    | {'like_count': COUNTS, 'like_count_30d': COUNTS, 'positive_ratio_30d': NUMBERS, 'signup_days': NUMBERS}
)


def without_json(value):
    "NaN and the infinities under names, since JSON has none for them."
    if isinstance(value, dict):
        return {key: without_json(one) for key, one in value.items()}
    return f'number {value}' if isinstance(value, float) and not np.isfinite(value) else value


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_ITEM, min_size=4, max_size=30), st.lists(ANY_USER, min_size=4, max_size=30))
def test_any_rows_have_the_same_vectors(node, items, users):
    tables = {'item': typed(items, ITEM_FEATURES), 'user': typed(users, USER_FEATURES)}
    half = {
        side: table.slice(0, len(table) // 2 + 1) for side, table in tables.items()
    }  # the others bring unknown words
    encoding = fit_encoding(half['item'], half['user'], use_price_feature=True, use_title_feature=True)
    rows = {'item': [*map(without_json, items)], 'user': [*map(without_json, users)]}
    said = ask(node, """['item', 'user'].map((side) => {
        const numbers = { 'number nan': NaN, 'number inf': Infinity, 'number -inf': -Infinity };
        const read = (row) => Object.fromEntries(Object.entries(row).map(([name, x]) => [name, Object.hasOwn(numbers, x) ? numbers[x] : x]));
        const { vectors, report } = t.encode({ encoding }, side, rows[side].map(read));
        return { data: [...vectors.data], unknown: report.unknownWords };
    })""", encoding=encoding, rows=rows)  # fmt: skip
    for side, theirs in zip(('item', 'user'), said, strict=True):
        ours, report = encode(encoding, side, tables[side])
        np.testing.assert_allclose(np.reshape(theirs['data'], ours.shape), ours.toarray(), atol=1e-5)
        assert theirs['unknown'] == report['unknown_words']
