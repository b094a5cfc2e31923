"""Seconds to load 500,000 videos with five tags and two performers each from the database.

    python bench/serving/load_videos.py [N]

Makes its own embedded PostgreSQL in a temporary folder and throws it away.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

from twotower.database import embedded
from twotower.database.connections import connect
from twotower.database.schema import migrate
from twotower.database.videos import load_videos

FILL = """
    INSERT INTO tags (name) SELECT 'tag ' || i FROM generate_series(0, 1999) i;
    INSERT INTO performers (name) SELECT 'performer ' || i FROM generate_series(0, 9999) i;
    INSERT INTO videos (id, content_id, product_url, title, maker, release_date, duration)
    SELECT gen_random_uuid(), 'c' || i, 'https://v.example/' || i, 'Title of video ' || i, 'maker ' || i % 500, DATE '2000-01-01' + i % 9000, 90
    FROM generate_series(1, {n}) i;
    INSERT INTO video_tags (video_id, tag_id)
    SELECT video_id, id FROM (
        SELECT DISTINCT videos.id AS video_id, 'tag ' || (hashtext(content_id || k) & 2147483647) % 2000 AS name
        FROM videos, generate_series(1, 5) k
    ) JOIN tags USING (name);
    INSERT INTO video_performers (video_id, performer_id)
    SELECT video_id, id FROM (
        SELECT DISTINCT videos.id AS video_id, 'performer ' || (hashtext(content_id || 'p' || k) & 2147483647) % 10000 AS name
        FROM videos, generate_series(1, 2) k
    ) JOIN performers USING (name);
    ANALYZE
"""


def main(n: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dsn = embedded.start(Path(folder))
        with connect(dsn) as conn:
            migrate(conn)
            conn.execute(FILL.format(n=n))
            conn.commit()
            started = time.perf_counter()
            videos = load_videos(conn)
            seconds = time.perf_counter() - started
        embedded.stop(Path(folder))
    links = sum(len(videos[name].combine_chunks().flatten()) for name in ('tags', 'performers'))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f'{len(videos):,} videos with {links:,} tags and performers: {seconds:.1f} s, peak of the reader {peak:.2f} GB'
    )


if __name__ == '__main__':
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500_000)
