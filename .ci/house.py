"The picture of where things live, made from the folders of nbs/: a floor imports only from those below it."

from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
FLOORS = {
    'operations': ('for operators: plan, run and watch chains', '運用する人のために：チェーンの計画、実行、見張り'),
    'page': ('for people: look at runs in a browser', '人が見るために：ブラウザーで実行結果を見る'),
    'catalogue': ('videos coming in: a table, MovieLens, the shop', '動画の取り込み：表、MovieLens、ショップ'),
    'embedding': ('embed what is new, and bring it into the database', '新しいものを埋め込み、データベースへ書き込む'),
    'learning': ('losses, optimisers and the training loop', '損失、最適化、学習ループ'),
    'evaluation': ('is it good? metrics, the gate, the verdict', '良いモデルか：指標、ゲート、判定'),
    'data': ('from files to opinions, splits and features', 'ファイルから意見、分割、特徴量まで'),
    'model': ('features as vectors, towers, ONNX', '特徴量ベクトル、タワー、ONNX'),
    'database': ('PostgreSQL: connect, tables, rows, neighbours', 'PostgreSQL：接続、テーブル、行、近傍'),
    'store': ('models in Supabase Storage or in a folder', 'Supabase Storage またはフォルダーにあるモデル'),
    'runs': ('a run: its folder, parameters and pages', '実行：フォルダー、パラメータ、ページ'),
    'parallel': ('several processes or machines', '複数のプロセスやマシン'),
    'base': (
        'what everything may use: errors, files, tables, settings',
        'すべてが使うもの：エラー、ファイル、表、設定',
    ),
}  # from the top floor down; of two on one floor neither knows the other
TITLES = {
    'en': ('floor', 'notebooks', 'what for', 'the stages, and the command `twotower`'),
    'ja': ('階', 'ノートブック', '役割', '各ステージと、コマンド `twotower`'),
}


def notebooks(folder: Path) -> list[Path]:
    "Its notebooks, the stages in their order."
    return sorted(path for path in folder.glob('*.ipynb') if path.stem not in ('index', 'index_ja'))


def picture(language: str = 'en', top: Path = TOP) -> str:
    "A table with a row for each floor, and a link to each notebook."
    floor, names, purpose, stages = TITLES[language]
    rooms = {'nbs': stages} | {f'nbs/{name}': texts[language == 'ja'] for name, texts in FLOORS.items()}
    if missing := {path.parent.name for path in (top / 'nbs').glob('*/*.ipynb')} ^ set(FLOORS):
        raise SystemExit(f'.ci/house.py: FLOORS and the folders of nbs/ differ in {sorted(missing)}')
    rows = [
        f'| `{room}/` | {" · ".join(f"[{path.stem}]({room}/{path.name})" for path in notebooks(top / room))} | {text} |\n'
        for room, text in rooms.items()
    ]
    return f'| {floor} | {names} | {purpose} |\n| --- | --- | --- |\n' + ''.join(rows)
