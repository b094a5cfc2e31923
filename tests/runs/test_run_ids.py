"Runs that start together get ids of their own."

from multiprocessing import get_context

from twotower.runs.run import create_run

PROCESSES, ROUNDS = 8, 10


def _start_together(barrier, outputs, found):
    ids = []
    for number in range(ROUNDS):
        barrier.wait(30)
        ids.append(create_run('auto', outputs / str(number)).id)
    found.put(ids)


def test_processes_that_start_together_get_different_ids(tmp_path):
    context = get_context('fork')
    barrier, found = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=_start_together, args=(barrier, tmp_path, found)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    ids = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    for number, together in enumerate(zip(*ids, strict=True)):
        assert len(set(together)) == PROCESSES
        assert {path.name for path in (tmp_path / str(number) / 'runs').iterdir()} == set(together)
