# ruff: noqa: E501 - the tenants' lines are theirs
"""The attacks: Python that a hostile tenant might run, each to be tried in a fresh isolate.

An attack that succeeds ends with `result = "open"`; one that is stopped raises, or its isolate
dies. None does harm when it succeeds: signals are number 0, forks end at once, what is filled is
bounded. They know FOREIGN (a directory of another tenant that file permissions leave open),
SUPERVISOR and ZYGOTE (process ids), TCP_PORT, UNIX_PATH, UNIX_NAME (sockets of the platform),
PACKAGE (installed, not granted), NATIVE (a library nobody loaded) and what PRELUDE defines.
"""

from __future__ import annotations

from dataclasses import dataclass

PRELUDE = """
import ctypes, errno, fcntl, mmap, os, platform, resource, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
NUMBERS = dict(
    accept=(43, 202), bpf=(321, 280), capset=(126, 91), chown=(92, None), clock_adjtime=(305, 266),
    clone=(56, 220), clone3=(435, 435), execve=(59, 221), fanotify_init=(300, 262), fork=(57, None),
    init_module=(175, 105), inotify_init1=(294, 26), io_uring_setup=(425, 425), ioprio_set=(251, 30),
    iopl=(172, None), kcmp=(312, 272), kexec_load=(246, 104), keyctl=(250, 219), add_key=(248, 217),
    request_key=(249, 218), landlock_create_ruleset=(444, 444), memfd_create=(319, 279),
    memfd_secret=(447, 447), membarrier=(324, 283), mlockall=(151, 230), modify_ldt=(154, None),
    mount=(165, 40), move_pages=(279, 239), mq_open=(240, 180), msgget=(68, 186),
    name_to_handle_at=(303, 264), open_by_handle_at=(304, 265), open_tree=(428, 428),
    perf_event_open=(298, 241), personality=(135, 92), pidfd_getfd=(438, 438),
    pidfd_open=(434, 434), pidfd_send_signal=(424, 424), pivot_root=(155, 41), pkey_alloc=(330, 289),
    prlimit64=(302, 261), process_vm_readv=(310, 270), process_vm_writev=(311, 271), ptrace=(101, 117),
    quotactl=(179, 60), reboot=(169, 142), recvmsg=(47, 212), rt_sigqueueinfo=(129, 138),
    sched_setscheduler=(144, 119), seccomp=(317, 277), semget=(64, 190), sendmsg=(46, 211),
    sethostname=(170, 161), setns=(308, 268), settimeofday=(164, 170), shmget=(29, 194),
    swapon=(167, 224), syslog=(103, 116), tgkill=(234, 131), unshare=(272, 97),
    userfaultfd=(323, 282), vfork=(58, None), vmsplice=(278, 75), openat2=(437, 437),
    splice=(275, 76), process_madvise=(440, 440), set_mempolicy=(238, 237), acct=(163, 89),
    mq_unlink=(241, 181), shmctl=(31, 195), semctl=(66, 191), msgctl=(71, 187),
    chroot=(161, 51), timer_create=(222, 107), fsopen=(430, 430),
)
def call(name, *arguments):
    number = NUMBERS[name][0 if X86 else 1] if isinstance(name, str) else name
    if number is None:
        raise OSError(errno.ENOSYS, "not on this machine")
    done = libc.syscall(ctypes.c_long(number), *(
        ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if done == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
def checked(done):
    if done == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
SECRET = FOREIGN + "/wal"
def raw(data):
    os.set_blocking(3, True)
    os.write(3, data)
def batch(body):
    raw(struct.pack("<I", len(body)) + body)
"""


@dataclass(frozen=True)
class Attack:
    """One try."""

    group: str
    name: str
    source: str
    open_without_jail: bool = False
    """Known to succeed without the jail: shows that something exists, not what is in it."""


METADATA = " (metadata)"


def _group(group: str, text: str) -> list[Attack]:
    """One attack a paragraph: a line `# name`, then its source."""
    attacks = []
    for paragraph in text.strip().split("\n\n"):
        name, _, source = paragraph.strip().removeprefix("# ").partition("\n")
        is_known = name.endswith(METADATA)
        name = name.removesuffix(METADATA)
        source = f"{source}\nresult = 'open'" if "result =" not in source else source
        attacks.append(Attack(group, name, source, open_without_jail=is_known))
    return attacks


READING = """
# read /etc/passwd
open("/etc/passwd").read()

# read another tenant's log
open(SECRET).read()

# read another tenant's log through ..
open(os.path.dirname(os.__file__) + "/../../../../../../../../../.." + SECRET).read()

# read another tenant's log through /proc/self/root
open("/proc/self/root" + SECRET).read()

# list another tenant's directory
os.listdir(FOREIGN)

# list the root directory
os.listdir("/")

# list /proc
os.listdir("/proc")

# list the standard library, and packages beside it
os.listdir(os.path.dirname(os.__file__)) and os.listdir(os.path.dirname(os.__file__) + "/site-packages")

# read a package that nobody granted
open(PACKAGE).read()

# stat a known path (metadata)
os.stat(SECRET)

# access a known path (metadata)
if not os.access(SECRET, os.F_OK): raise PermissionError

# readlink of a foreign link (metadata)
os.readlink(FOREIGN + "/link")

# open a foreign path as a mere handle (metadata)
os.open(SECRET, os.O_PATH)

# read through a mere handle on a foreign directory
os.open("wal", os.O_RDONLY, dir_fd=os.open(FOREIGN, os.O_PATH))

# read the xattrs of a foreign file
os.listxattr(SECRET)

# the supervisor's environment
open(f"/proc/{SUPERVISOR}/environ", "rb").read()

# the supervisor's memory
open(f"/proc/{SUPERVISOR}/mem", "rb")

# the supervisor's memory map
open(f"/proc/{SUPERVISOR}/maps").read(1)

# the supervisor's descriptors
os.listdir(f"/proc/{SUPERVISOR}/fd")

# the supervisor's command line
open(f"/proc/{SUPERVISOR}/cmdline").read()

# the zygote's environment
open(f"/proc/{ZYGOTE}/environ", "rb").read()

# the zygote's memory
open(f"/proc/{ZYGOTE}/mem", "rb")

# watch a foreign file with inotify
fd = libc.inotify_init1(0)
checked(fd)
checked(libc.inotify_add_watch(fd, SECRET.encode(), 0xFFF))

# watch the file system with fanotify
call("fanotify_init", 0, 0)

# a file handle without a path
call("name_to_handle_at", -100, ctypes.c_char_p(SECRET.encode()), ctypes.create_string_buffer(200), ctypes.byref(ctypes.c_int()), 0)

# open by file handle
call("open_by_handle_at", -100, ctypes.create_string_buffer(64), 0)

# openat2 past the filter of openat
call("openat2", -100, ctypes.c_char_p(SECRET.encode()), ctypes.create_string_buffer(24), 24)

# an environment with secrets in it
if not os.environ: raise PermissionError

# a descriptor that was left open
found = []
for fd in range(5, 1024):
    try: found.append((fd, os.fstat(fd)))
    except OSError: pass
import stat
if not [s for fd, s in found if stat.S_ISREG(s.st_mode) and s.st_size not in (0, 4096) or stat.S_ISCHR(s.st_mode)]: raise PermissionError

# the kernel's log
call("syslog", 3, ctypes.create_string_buffer(4096), 4096)
"""

WRITING = """
# overwrite a module of the standard library
open(os.__file__, "r+b").close()

# add a module to the standard library
open(os.path.dirname(os.__file__) + "/sitecustomize_.py", "w")

# add a module to the SDK
import dynamic_workflows
open(os.path.dirname(dynamic_workflows.__file__) + "/evil.py", "w")

# create a file in /tmp
open("/tmp/dw-evil-" + str(os.getpid()), "w")

# create a file in /dev/shm
open("/dev/shm/dw-evil-" + str(os.getpid()), "w")

# create an unnamed file in /tmp
os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)

# append to a foreign file
open(SECRET, "ab").write(b"x")

# create a file in a foreign directory
open(FOREIGN + "/new", "w")

# make a directory in a foreign one
os.mkdir(FOREIGN + "/new-directory")

# truncate a foreign file
os.truncate(FOREIGN + "/victim", 0)

# unlink a foreign file
os.unlink(FOREIGN + "/unlink-me")

# rename a foreign file
os.rename(FOREIGN + "/rename-me", FOREIGN + "/renamed")

# change a foreign file's mode
os.chmod(FOREIGN + "/victim", 0o777)

# change a foreign file's owner
os.chown(FOREIGN + "/victim", os.getuid(), os.getgid())

# change a foreign file's times
os.utime(FOREIGN + "/victim", (0, 0))

# set an attribute of a foreign file
os.setxattr(FOREIGN + "/victim", "user.evil", b"1")

# plant a symbolic link
os.symlink("/etc/passwd", FOREIGN + "/planted-" + str(os.getpid()))

# plant a hard link
os.link(FOREIGN + "/victim", FOREIGN + "/hard-" + str(os.getpid()))

# make a FIFO
os.mkfifo(FOREIGN + "/fifo-" + str(os.getpid()))

# make a socket file
socket.socket(socket.AF_UNIX).bind(FOREIGN + "/sock-" + str(os.getpid()))

# lock a file of the standard library
fcntl.flock(open(os.__file__), fcntl.LOCK_EX | fcntl.LOCK_NB)

# take a lease on a file of the standard library
fcntl.fcntl(open(os.__file__), fcntl.F_SETLEASE, fcntl.F_RDLCK)

# fill the disk with one file
file = open("/tmp/dw-evil-" + str(os.getpid()), "wb")
for _ in range(8): file.write(b"x" * (1 << 20))
file.close()

# fill the disk with many files
for number in range(64): open(f"/tmp/dw-evil-{os.getpid()}-{number}", "wb").write(b"x" * 4096)

# a file in memory that no limit counts
os.ftruncate(os.memfd_create("evil"), 1 << 30)

# move to another directory
os.chdir(FOREIGN)

# another root directory
os.chroot(FOREIGN)
"""

NETWORK = """
# connect by TCP
socket.create_connection(("127.0.0.1", TCP_PORT), 5)

# connect by TCP over IPv6
socket.socket(socket.AF_INET6, socket.SOCK_STREAM).connect(("::1", TCP_PORT))

# listen on TCP
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()

# send by UDP
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", TCP_PORT))

# look up a name
socket.getaddrinfo("example.com", 80)

# multipath TCP
socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)

# SCTP
socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)

# a raw socket
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)

# a ping socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)

# a packet socket
socket.socket(socket.AF_PACKET, socket.SOCK_RAW)

# a netlink socket
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)

# a vsock
socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)

# a socket of the kernel's cryptography
socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)

# a unix socket by path
socket.socket(socket.AF_UNIX).connect(UNIX_PATH)

# a unix socket by abstract name
socket.socket(socket.AF_UNIX).connect(UNIX_NAME)

# a datagram to an address from an unconnected pair
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
one.sendto(b"x", UNIX_PATH)

# an internet socket pair
socket.socketpair(socket.AF_INET)

# hand a descriptor to the supervisor
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=os.dup(3))
s.setblocking(True)
socket.send_fds(s, [struct.pack("<I", 5) + b"\\x91\\x93\\x14\\x01\\xc0"], [0])

# receive a descriptor over the channel
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=os.dup(3))
s.recvmsg(1, 1000, socket.MSG_DONTWAIT)

# the supervisor's user by the channel's credentials
socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=os.dup(3)).getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)

# accept on the channel
call("accept", 3, 0, 0)
"""

PROCESSES = """
# signal the supervisor
os.kill(SUPERVISOR, 0)

# signal the zygote
os.kill(ZYGOTE, 0)

# signal everyone
os.kill(-1, 0)

# signal one's group
os.killpg(os.getpgrp(), 0)

# signal a thread of the supervisor
call("tgkill", SUPERVISOR, SUPERVISOR, 0)

# queue a signal to the supervisor
call("rt_sigqueueinfo", SUPERVISOR, 0, ctypes.create_string_buffer(b"\\0\\0\\0\\0\\0\\0\\0\\0\\xff\\xff\\xff\\xff", 128))

# a pidfd of the supervisor
call("pidfd_open", SUPERVISOR, 0)

# signal by a pidfd
call("pidfd_send_signal", call("pidfd_open", SUPERVISOR, 0), 0, 0, 0)

# steal a descriptor of the supervisor
call("pidfd_getfd", call("pidfd_open", SUPERVISOR, 0), 0, 0)

# steal a descriptor of nobody
call("pidfd_getfd", -1, 0, 0)

# make the supervisor the owner of a descriptor's signals
fcntl.fcntl(3, fcntl.F_SETOWN, SUPERVISOR)

# choose the signal of a descriptor
fcntl.fcntl(3, fcntl.F_SETSIG, signal.SIGKILL)

# trace the supervisor
call("ptrace", 0x4206, SUPERVISOR, 0, 0)

# be traced
call("ptrace", 0, 0, 0, 0)

# read the supervisor's memory
buffer = ctypes.create_string_buffer(8)
iov = struct.pack("PN", ctypes.addressof(buffer), 8)
call("process_vm_readv", SUPERVISOR, ctypes.c_char_p(iov), 1, ctypes.c_char_p(iov), 1, 0)

# write the supervisor's memory
call("process_vm_writev", SUPERVISOR, 0, 0, 0, 0, 0)

# compare with the supervisor's resources
call("kcmp", SUPERVISOR, os.getpid(), 0, 0, 0)

# read the supervisor's limits
call("prlimit64", SUPERVISOR, 7, 0, ctypes.create_string_buffer(16))

# set the supervisor's limits
old = ctypes.create_string_buffer(16)
call("prlimit64", SUPERVISOR, 7, 0, old)
call("prlimit64", SUPERVISOR, 7, old, 0)

# fork
pid = os.fork()
if pid == 0: os._exit(0)
os.waitpid(pid, 0)

# fork by the system call
pid = call("fork")
if pid == 0: os._exit(0)

# clone
pid = call("clone", signal.SIGCHLD, 0, 0, 0, 0)
if pid == 0: os._exit(0)

# clone3
pid = call("clone3", ctypes.c_char_p(struct.pack("QQQQQQQQ", 0, 0, 0, 0, 17, 0, 0, 0)), 64)
if pid == 0: os._exit(0)

# clone into new namespaces
pid = call("clone", signal.SIGCHLD | 0x10000000, 0, 0, 0, 0)
if pid == 0: os._exit(0)

# start a thread
import threading
thread = threading.Thread(target=int); thread.start(); thread.join()

# start a subprocess
import subprocess
subprocess.run(["/bin/true"], check=True)

# posix_spawn
os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)

# system()
if os.system("true") != 0: raise PermissionError

# become a shell
os.execv("/bin/sh", ["sh", "-c", "exit 99"])

# execute the interpreter
os.execv(sys.executable, [sys.executable, "-c", "pass"])

# execute from memory
fd = os.memfd_create("evil")
os.write(fd, b"#!/bin/true"); os.execve(fd, ["x"], {})

# write to one's own memory by /proc
open("/proc/self/mem", "r+b")

# become root
os.setuid(0)

# become another group
os.setgid(0)

# join groups
os.setgroups([0])

# take capabilities
call("capset", ctypes.c_char_p(struct.pack("Ii", 0x20080522, 0)), ctypes.c_char_p(b"\\xff" * 24))

# a higher priority
os.setpriority(os.PRIO_PROCESS, 0, -5)

# a lower priority for the supervisor
os.setpriority(os.PRIO_PROCESS, SUPERVISOR, os.getpriority(os.PRIO_PROCESS, SUPERVISOR))

# another processor
os.sched_setaffinity(0, os.sched_getaffinity(0))

# another processor for the supervisor
os.sched_setaffinity(SUPERVISOR, os.sched_getaffinity(SUPERVISOR))

# real-time scheduling
call("sched_setscheduler", 0, 1, ctypes.c_char_p(struct.pack("i", 1)))

# input and output of a higher class
call("ioprio_set", 1, 0, 0x2000)

# more open files
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

# outlive the supervisor
checked(libc.prctl(1, 0, 0, 0, 0))

# be readable again
checked(libc.prctl(4, 1, 0, 0, 0))

# another name for the process
checked(libc.prctl(15, b"TenantActor", 0, 0, 0))

# another filter
call("seccomp", 0, 0, 0)

# another process group
os.setpgid(0, 0)

# a System V shared memory
call("shmctl", call("shmget", 0, 4096, 0o1600), 0, 0)

# a System V semaphore
call("semctl", call("semget", 0, 1, 0o1600), 0, 0, 0)

# a System V message queue
call("msgctl", call("msgget", 0, 0o1600), 0, 0)

# a POSIX message queue
call("mq_open", ctypes.c_char_p(b"dw-evil"), os.O_CREAT | os.O_RDWR, 0o600, 0)
call("mq_unlink", ctypes.c_char_p(b"dw-evil"))

# a timer that signals
call("timer_create", 0, 0, ctypes.create_string_buffer(8))

# a pipe
os.pipe()
"""

KERNEL = """
# io_uring
call("io_uring_setup", 1, ctypes.create_string_buffer(120))

# bpf
call("bpf", 0, ctypes.create_string_buffer(72), 72)

# userfaultfd
call("userfaultfd", 1)

# perf events
call("perf_event_open", ctypes.c_char_p(struct.pack("II", 1, 112).ljust(112, b"\\0")), 0, -1, -1, 0)

# keyctl
call("keyctl", 0, -3, 0)

# add a key
call("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"evil"), ctypes.c_char_p(b"x"), 1, -3)

# request a key
call("request_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"evil"), 0, 0)

# new namespaces
call("unshare", 0x10000000)

# somebody else's namespace
call("setns", 3, 0)

# mount
call("mount", ctypes.c_char_p(b"x"), ctypes.c_char_p(b"/tmp"), ctypes.c_char_p(b"tmpfs"), 0, 0)

# the new calls for mounting
call("fsopen", ctypes.c_char_p(b"tmpfs"), 0)

# clone a mount
call("open_tree", -100, ctypes.c_char_p(b"/"), 1)

# pivot_root
call("pivot_root", ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))

# load a kernel module
call("init_module", 0, 0, ctypes.c_char_p(b""))

# another kernel
call("kexec_load", 0, 0, 0, 0)

# reboot
call("reboot", 0, 0, 0, 0)

# swap
call("swapon", ctypes.c_char_p(b"/tmp/x"), 0)

# process accounting
call("acct", 0)

# quotas
call("quotactl", 0x800001, 0, 0, 0)

# the time of day
call("settimeofday", ctypes.c_char_p(struct.pack("ll", 0, 0)), 0)

# the clock's speed
call("clock_adjtime", 0, ctypes.create_string_buffer(b"\\1", 208))

# the host's name
call("sethostname", ctypes.c_char_p(b"evil"), 4)

# another personality
call("personality", 0x0400000)

# ports of input and output
call("iopl", 3)

# the local descriptor table
call("modify_ldt", 0, ctypes.create_string_buffer(16), 16)

# the calls of the x32 interface
if not X86: raise OSError(errno.ENOSYS, "not on this machine")
call(0x40000000 + 39)

# secret memory
call("memfd_secret", 0)

# where pages lie
call("move_pages", 0, 0, 0, 0, 0, 0)

# the memory policy
call("set_mempolicy", 0, 0, 0)

# a barrier in every process
call("membarrier", 1 << 0, 0)

# protection keys
call("pkey_alloc", 0, 0)

# gift pages to a pipe
call("vmsplice", 3, 0, 0, 0)
"""

MEMORY = """
# memory to write and to execute
libc.mmap.restype = ctypes.c_void_p
if libc.mmap(0, 4096, 7, 0x22, -1, 0) == ctypes.c_void_p(-1).value: raise OSError(ctypes.get_errno(), "mmap")

# memory made executable later
area = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
checked(libc.mprotect(ctypes.c_void_p(address), 4096, 5))

# a call-back made by ctypes
ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)()

# load native code
ctypes.CDLL(NATIVE)

# allocate without end
hoard = []
for _ in range(64): hoard.append(bytearray(b"x" * (4 << 20)))

# map without end
hoard = [mmap.mmap(-1, 16 << 20) for _ in range(64)]

# map a terabyte
mmap.mmap(-1, 1 << 40)

# share memory without end
for _ in range(64):
    area = mmap.mmap(-1, 4 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    area.write(b"x" * (4 << 20)); globals().setdefault("hoard", []).append(area)
time.sleep(1)  # whoever watches looks now and then

# lock memory
call("mlockall", 3)

# merge pages to time what others hold
area = mmap.mmap(-1, 1 << 20)
area.madvise(12)

# descriptors without end
held = [os.dup(0) for _ in range(5000)]

# sockets without end
held = [socket.socketpair() for _ in range(2000)]

# a recursion without end
sys.setrecursionlimit(10**9)
def deeper(): return deeper()
deeper()

# a structure too deep to give back
x = []
for _ in range(3_000_000): x = [x]
del x
raise MemoryError("gone without a crash")

# a number without end
x = 1 << (1 << 34)
"""

TIME = """
# spin
while True: pass

# spin in a regular expression
import re
re.match(r"(a+)+$", "a" * 64 + "b")

# spin in big numbers
x = 3 ** (1 << 26)

# sleep with the loop
time.sleep(600)

# wait for oneself
import select
select.select([], [], [], 600)

# a busy loop of short turns
async def main():
    import asyncio
    while True: await asyncio.sleep(0)

# a forged heartbeat
import gc
page = next(o for o in gc.get_objects() if type(o).__name__ == "HeartbeatWriter")
while True: page.begin_turn(); page.rest()

# deaf to signals
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass

# a loop that another loop runs
import asyncio
loop.stop()
while True: pass
"""

PROTOCOL = """
# a batch of four gigabytes
raw(b"\\xff\\xff\\xff\\xff")
loop.call_later(600, int); result = None

# an empty batch
raw(struct.pack("<I", 0))
loop.call_later(600, int); result = None

# no messages in a batch
batch(b"\\x90")
result = None

# text instead of batches
raw(b"GET / HTTP/1.1\\r\\nHost: supervisor\\r\\n\\r\\n")
result = None

# a nesting bomb
batch(b"\\x91" * 500_000)
result = None

# an array bomb
batch(b"\\xdd\\xff\\xff\\xff\\xff")
result = None

# messages of wrong types
batch(b"\\x91\\x93\\xa1x\\x01\\xc4\\x00")
result = None

# an extension type
batch(b"\\x91\\xc7\\x04\\x01abcd")
result = None

# a pickle
import pickle
batch(pickle.dumps(print))
result = None

# a map instead of a list
batch(b"\\x81\\x01\\x02")
result = None

# a length of more bytes than there are
batch(b"\\x91\\x93\\x14\\x01\\xc6\\xff\\xff\\xff\\xff")
result = None

# tiny parts
batch(b"\\x91\\x93\\x00\\x00\\xc4\\x01x")
result = None

# parts without end
part = b"\\x91\\x93\\x00\\x00\\xc6" + struct.pack(">I", 1 << 19) + b"x" * (1 << 19)
while True: batch(part)

# speak as the walls do
send([(-1, 0, b""), (-2, 0, b"walls fell")])
result = None

# a message of no known kind
send([(77, 1, b"")])
result = None

# a message that only supervisors send
send([(1, 0, b"")])
result = None

# a flood of messages
import msgspec
for _ in range(200): send([(21, 1, b"")] * 500)
result = "as it was"

# a flood of log records
from dynamic_workflows.loaders.protocol.messages import Log, pack
record = pack(Log("info", "x"))
for _ in range(2_000): send([record] * 500)
loop.call_later(600, int); result = None

# a flood of output past the streams
async def main():
    import asyncio
    while True: os.write(1, b"x" * 65536); await asyncio.sleep(0)

# an answer nobody asked for
send([(9, 0, b"\\x91\\xcd\\x27\\x10")])
result = "as it was"

# the same call twice
from dynamic_workflows.loaders.protocol.messages import CallRequest, pack
inner = send.__self__._send
inner([pack(CallRequest(5, "x", "y", b"", b""))] * 2)
result = None

# half a batch, then something else
raw(b"\\xff\\xff\\xff")
result = None

# shut the channel for writing
socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=os.dup(3)).shutdown(socket.SHUT_WR)
result = None

# close the channel and live on
os.close(3)
loop.call_later(600, int)
result = None

# read nothing any more
loop.remove_reader(3)
result = "as it was"

# shrink the heartbeat page
done = 0
for fd in range(1024):
    try: os.ftruncate(fd, 0)
    except OSError as error: continue
    done += 1
if not done: raise PermissionError

# end in the middle of a turn
os._exit(0)

# crash
ctypes.string_at(0)

# abort
os.abort()

# a division that the processor refuses
os.kill(os.getpid(), signal.SIGFPE)
"""

ATTACKS: list[Attack] = [
    *_group("Reading", READING),
    *_group("Writing", WRITING),
    *_group("Network", NETWORK),
    *_group("Processes", PROCESSES),
    *_group("Kernel", KERNEL),
    *_group("Memory", MEMORY),
    *_group("Time", TIME),
    *_group("Protocol", PROTOCOL),
]
