"""A process with one thread forks without the standard library's care for threads, and is whole."""

from __future__ import annotations

import fresh_python

BEGIN = """
from dynamic_workflows.loaders.isolates import fork_hooks
fork_hooks.hold_back()
import concurrent.futures.thread, logging, random, threading
"""


def run(text: str) -> str:
    return fresh_python.run(BEGIN + text)


def test_each_child_has_random_numbers_of_its_own() -> None:
    found = run("""
fork_hooks.restore(has_threads=False)
numbers = {in_child(random.random) for _ in range(5)} | {repr(random.random())}
print(len(numbers))
""")
    assert found == "6"


def test_locks_logging_and_threads_work_in_a_child() -> None:
    found = run("""
fork_hooks.restore(has_threads=False)
def work():
    logging.getLogger().addHandler(logging.NullHandler())
    logging.error("nobody hears it")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        number = pool.submit(lambda: 42).result()
    return number, threading.current_thread() is threading.main_thread(), threading.active_count()
print(in_child(work))
""")
    assert found == "(42, True, 1)"


def test_the_hooks_of_others_are_called() -> None:
    found = run("""
heard = []
os.register_at_fork(after_in_child=lambda: heard.append("early"))
fork_hooks.restore(has_threads=False)
os.register_at_fork(after_in_child=lambda: heard.append("late"))
print(in_child(lambda: heard))
""")
    assert found == "['early', 'late']"


def test_where_there_are_threads_the_hooks_count() -> None:
    found = run("""
threading.Thread(target=threading.Event().wait, daemon=True).start()
without = in_child(threading.active_count)
fork_hooks.restore(has_threads=threading.active_count() > 1)
print(without, in_child(threading.active_count))
""")
    assert found == "2 1"
