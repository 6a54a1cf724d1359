"""Reaper: ends what an embedded Ray leaves behind when its driver is killed.

Run as a program of its own: `reaper.py <mark> <folder>`. It waits for the end of its standard
input, that is of the driver, then kills every process that was started with the mark in its
environment, and removes the cluster's folder. It imports little: one runs beside every driver.
"""

import os
import shutil
import signal
import sys
import time

VARIABLE = "DYNAMIC_WORKFLOWS_SESSION"
_LOOKS_MAX = 50
_REST_S = 0.1


def marked(mark: str) -> list[int]:
    """The processes that carry the mark; those of others, and unreadable ones, are passed over."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if wanted in file.read().split(b"\0"):
                        found.append(int(name))
            except OSError:
                continue
    return found


def reap(mark: str) -> None:
    """Kill every marked process, until two looks in a row find none."""
    quiet = 0
    for _ in range(_LOOKS_MAX):
        pids = marked(mark)
        quiet = 0 if pids else quiet + 1
        if quiet == 2:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(_REST_S)


def main() -> None:
    """Wait for the driver's end, then clean up."""
    _, mark, folder = sys.argv
    # Ctrl-C in a terminal reaches every process of the group; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        pass
    reap(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
