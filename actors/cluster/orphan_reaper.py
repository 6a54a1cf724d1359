"""Reaper: ends what an embedded Ray leaves behind when its driver is killed.

Run as a program of its own: `reaper.py <folder> <driver's pid>`. It waits for the end of its
standard input, that is of the driver, then kills every process that has a file of the cluster's
folder open (each of them writes its logs there), and removes the folder. Other programs that have
joined the cluster write logs there too: they have left their pids in `guests`, and are spared.
Before that it does the same for folders beside it whose driver and reaper are both gone: nobody
holds their lock.
"""

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

PREFIX = "dw-"
"""So the folders are called."""
LOCK = "lock"
"""The file in each that its driver and its reaper keep locked."""
GUESTS = "guests"
"""Folder in each: a file for each process that has joined the cluster, named by its pid."""
_LOOKS_MAX = 100
_REST_S = 0.1


def members(folder: str, *, spared: int) -> list[int]:
    """The processes of the cluster; those of other users are passed over."""
    if os.path.isdir("/proc/self/fd"):
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        pids = [pid for pid in pids if _is_member(pid, folder)]
    else:
        pids = listed(folder)
    return [pid for pid in pids if pid not in (spared, os.getpid(), *guests(folder))]


def guests(folder: str) -> list[int]:
    """The programs that have joined the cluster."""
    try:
        return [int(name) for name in os.listdir(os.path.join(folder, GUESTS)) if name.isdigit()]
    except OSError:
        return []


def listed(folder: str) -> list[int]:
    """The same where there is no /proc: macOS ships `lsof`; without it nobody can be found."""
    try:
        found = subprocess.run(
            ["lsof", "-w", "-t", "+D", os.path.realpath(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return []
    return [int(pid) for pid in found.stdout.split()]


def _is_member(pid: int, folder: str) -> bool:
    try:
        links = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for link in links:
        try:
            if os.readlink(f"/proc/{pid}/fd/{link}").startswith(folder + "/"):
                return True
        except OSError:
            continue
    return False


def reap(folder: str, *, spared: int) -> None:
    """Kill every member, until two looks in a row find none."""
    quiet = 0
    for _ in range(_LOOKS_MAX):
        pids = members(folder, spared=spared)
        quiet = 0 if pids else quiet + 1
        if quiet == 2:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(_REST_S)


def sweep(beside: str) -> None:
    """Reap the folders of this user in which neither a driver nor a reaper is left."""
    place = os.path.dirname(beside)
    for name in os.listdir(place):
        folder = os.path.join(place, name)
        if name.startswith(PREFIX) and folder != beside and _is_left_over(folder):
            reap(folder, spared=0)
            shutil.rmtree(folder, ignore_errors=True)


def _is_left_over(folder: str) -> bool:
    """Whether it is a folder of ours, closed to others, whose lock is free."""
    try:
        found = os.lstat(folder)
        # Who could write there could have put the lock there.
        if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.getuid():
            return False
        lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def main() -> None:
    """Wait for the driver's end, then clean up; the end of standard output says that it is done."""
    _, folder, driver = sys.argv
    # Who kills the driver with all its descendants does not mean this one.
    if os.fork():
        os._exit(0)
    os.setsid()
    # Ctrl-C in a terminal reaches every process of the group; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sweep(folder)
    except OSError:
        pass  # who cleans up after others must not miss its own driver's end
    while sys.stdin.buffer.read(1):
        pass
    reap(folder, spared=int(driver))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
