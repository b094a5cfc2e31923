"""The two kinds of stores, so that one test can be about both."""

import shutil
import time
from pathlib import Path

from storage_server import SECRET_KEY, StorageServer

from twotower.store.contract import Store
from twotower.store.local import LocalStore
from twotower.store.supabase import SupabaseStore


class Folder:
    "A folder as the place of a store."

    def __init__(self, path: Path):
        self.path = path

    def open(self) -> LocalStore:
        return LocalStore(self.path)

    def keep(self) -> None:
        "Remember what is there."
        shutil.copytree(self.path, self.path.with_name('kept'))

    def reset(self) -> None:
        "Make it as it was remembered, empty if it was not."
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.with_name('kept').exists():
            shutil.copytree(self.path.with_name('kept'), self.path)

    def close(self) -> None:
        pass


class Bucket:
    "A bucket as the place of a store."

    def __init__(self, path: Path):
        self.server, self.kept = StorageServer(), {}

    def open(self, timeout: float = 10) -> SupabaseStore:
        "A store with a connection of its own: processes must not share one."
        return SupabaseStore(self.server.url, SECRET_KEY, 'models', timeout, sleep=lambda s: time.sleep(s / 100))

    def keep(self) -> None:
        self.kept = dict(self.server.objects)

    def reset(self) -> None:
        with self.server.lock:
            self.server.objects = dict(self.kept)
            self.server.cache.clear()

    def close(self) -> None:
        self.server.close()


PLACES = {'local': Folder, 'supabase': Bucket}


class Around:
    "A store through which a test sees, or changes, what happens."

    def __init__(self, store: Store):
        self.store = store

    def __str__(self) -> str:
        return str(self.store)

    def __getattr__(self, name: str):
        return getattr(self.store, name)
