"""The walls stand where they can, refuse where they cannot, and the filter means what it says."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolates import isolates, start
from paths import IMPORTS

from dynamic_workflows.eventlog.errors import SandboxUnavailable
from dynamic_workflows.loaders.isolates.interface import Isolation, Limits
from dynamic_workflows.loaders.sandbox import linux, sandbox, seccomp
from dynamic_workflows.loaders.sandbox.readable_paths import Readable
from dynamic_workflows.loaders.sandbox.syscall_numbers import ARCHITECTURES, SYSCALLS

ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE, ABSENT = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


# --- the filter, by a machine for it written here: so other processors are tested as well ---------


def run(program: bytes, data: bytes) -> int:
    """What the program returns for this description of a system call."""
    code = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == 0x20:  # load a word
            (value,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x06:  # return
            return int(operand)
        elif operation == 0x05:  # jump
            at += operand
        else:
            test = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}
            at += if_true if test[operation] else if_false


def ask(
    machine: str, number: int, *arguments: int, threads: bool = False, tmp: bool = False
) -> int:
    program = seccomp.program(machine=machine, threads=threads, tmp=tmp)
    six = [argument & (2**64 - 1) for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    return run(program, struct.pack("=iIQ6Q", number, ARCHITECTURES[machine], 0, *six))


@pytest.fixture(params=list(SYSCALLS))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_listed_call_is_answered_as_listed(machine: str) -> None:
    numbers = SYSCALLS[machine]
    answers = ((seccomp.ALLOWED, ALLOW), (seccomp.KILLED, KILL), (seccomp.ABSENT, ABSENT))
    for names, answer in answers:
        for name in names:
            if name in numbers:
                assert ask(machine, numbers[name]) == answer, name


def test_files_can_be_changed_with_a_tmp_only(machine: str) -> None:
    for name in seccomp.ALLOWED_WITH_TMP:
        if name in SYSCALLS[machine]:
            number = SYSCALLS[machine][name]
            assert ask(machine, number) == REFUSE
            assert ask(machine, number, tmp=True) == ALLOW


@given(number=st.integers(0, 2**31 - 1) | st.integers(0, 500))
@settings(max_examples=300)
def test_what_is_not_listed_is_never_allowed(number: int) -> None:
    for machine, numbers in SYSCALLS.items():
        if number not in numbers.values():
            assert ask(machine, number) in (REFUSE, ABSENT, KILL)


def test_calls_of_another_machine_end_the_process(machine: str) -> None:
    program = seccomp.program(machine=machine, threads=False, tmp=False)
    for architecture in (0x40000003, 0x40000028, 0):  # 32 bits, and nonsense
        assert run(program, struct.pack("=iIQ6Q", 0, architecture, 0, *[0] * 6)) == KILL
    assert ask(machine, 0x40000000) == KILL


BIG = 1 << 40  # in the upper half of an argument, where a filter that looks at one half is blind


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("sendto", (3, 1, 1, 0, 0, 0), ALLOW),
        ("sendto", (3, 1, 1, 0, 0x7F0000001000, 16), REFUSE),
        ("sendto", (3, 1, 1, 0, BIG, 16), REFUSE),
        ("mmap", (0, 4096, 3, 0x22), ALLOW),
        ("mmap", (0, 4096, 5, 0x22), REFUSE),
        ("mprotect", (0, 4096, 7), REFUSE),
        ("mprotect", (0, 4096, 1), ALLOW),
        ("madvise", (0, 4096, 12), REFUSE),
        ("madvise", (0, 4096, 4), ALLOW),
        ("fcntl", (3, 1030), ALLOW),
        ("fcntl", (3, 8), REFUSE),
        ("fcntl", (3, 6), REFUSE),
        ("ioctl", (3, 0x5421), ALLOW),
        ("ioctl", (3, 0x5412), REFUSE),  # TIOCSTI: type into the terminal
        ("socketpair", (1, 1), ALLOW),
        ("socketpair", (2, 1), REFUSE),
        ("getsockopt", (3, 1, 4), ALLOW),
        ("getsockopt", (3, 1, 17), REFUSE),
        ("getsockopt", (3, 6, 4), REFUSE),
        ("prlimit64", (0, 7, 0), ALLOW),
        ("prlimit64", (0, 7, 0x1000), REFUSE),
        ("prlimit64", (0, 7, BIG), REFUSE),
        ("prlimit64", (1234, 7, 0), REFUSE),
        ("sched_getaffinity", (0,), ALLOW),
        ("sched_getaffinity", (1,), REFUSE),
        ("rt_sigaction", (24,), REFUSE),
        ("rt_sigaction", (2,), ALLOW),
        ("clock_gettime", (1,), ALLOW),
        ("clock_gettime", ((~1234 << 3) | 2,), REFUSE),
        ("clone", (0x3D0F00,), REFUSE),
        ("clone", (17,), REFUSE),
    ],
)
def test_arguments_are_looked_at(
    machine: str, name: str, arguments: tuple[int, ...], answer: int
) -> None:
    assert ask(machine, SYSCALLS[machine][name], *arguments) == answer


@pytest.mark.parametrize("flags", [17, 0x100, 0x3D0F00 | 0x10000000, 0x3D0F00 | BIG, 0])
def test_threads_allow_threads_and_no_other_child(machine: str, flags: int) -> None:
    number = SYSCALLS[machine]["clone"]
    assert ask(machine, number, 0x3D0F00, threads=True) == ALLOW
    assert ask(machine, number, flags, threads=True) == REFUSE


def test_locks_need_a_tmp(machine: str) -> None:
    number = SYSCALLS[machine]["fcntl"]
    assert ask(machine, number, 3, 6, tmp=True) == ALLOW
    assert ask(machine, number, 3, 8, tmp=True) == REFUSE


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("tmp", [False, True])
def test_every_number_there_is_gets_the_answer_of_its_list(
    machine: str, threads: bool, tmp: bool
) -> None:
    program = seccomp.program(machine=machine, threads=threads, tmp=tmp)
    names = {number: name for name, number in SYSCALLS[machine].items()}
    checked = set(seccomp._checked_bodies(threads=threads, tmp=tmp))
    lists = [(seccomp.ALLOWED, ALLOW), (seccomp.KILLED, KILL), (seccomp.ABSENT, ABSENT)]
    lists.append((seccomp.ALLOWED_WITH_TMP, ALLOW if tmp else REFUSE))
    answers = {name: answer for listed, answer in lists for name in listed}
    assert not checked & set(answers)
    assert set(names.values()) <= checked | set(answers)
    for number in range(max(names) + 200):
        data = struct.pack("=iIQ6Q", number, ARCHITECTURES[machine], 0, *[0] * 6)
        otherwise = REFUSE if number < max(names) else ABSENT
        if names.get(number) not in checked:
            assert run(program, data) == answers.get(names.get(number, ""), otherwise), number


# Where Linux's own headers name the calls of a machine. Those of aarch64 are the generic ones.
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def test_numbers_are_those_of_the_kernels_own_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers here")
    found = re.findall(
        r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)\s*$", HEADERS[machine].read_text(), re.MULTILINE
    )
    official = {name: int(number) for name, number in found}
    # On 64 bits, __NR3264_fstatat is this call.
    official.setdefault("newfstatat", official.get("fstatat", -1))
    ours = {**SYSCALLS[machine], **linux._NUMBERS[machine], **linux._COMMON_NUMBERS}
    # Two that are younger than some headers; what later kernels add, the filter answers by itself.
    for name in {"memfd_secret", "mount_setattr"} - set(official):
        del ours[name]
    assert {name: official.get(name) for name in ours} == ours
    missed = [name for name in seccomp.ALLOWED + seccomp.KILLED if name in official]
    assert {name for name in missed if name not in SYSCALLS[machine]} == set()


def test_a_machine_is_recognised_as_the_kernel_names_it(machine: str) -> None:
    header = Path("/usr/include/linux/elf-em.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    found = re.search(rf"#define EM_{machine.upper()}\s+(\d+)", header.read_text())
    assert found
    is_64_bits, is_little_endian = 0x80000000, 0x40000000
    assert ARCHITECTURES[machine] == int(found[1]) | is_64_bits | is_little_endian


# --- the walls on this host, and on hosts that offer less -----------------------------------------


async def level_or_reason(isolation: Isolation) -> str:
    async with isolates(isolation) as made:
        try:
            return await made.ready()
        except SandboxUnavailable as error:
            return error.message


async def test_a_python_that_was_built_on_an_old_system_will_do() -> None:
    program = """
import asyncio, os, signal
lesson = "import os, signal; del os.memfd_create, os.pidfd_open, signal.pidfd_send_signal; "
exec(lesson)
from isolates import Isolation, Limits, isolates, start
from dynamic_workflows.loaders.isolates import zygote_client as spawner
spawner._BOOT = lesson + spawner._BOOT
async def main():
    async with isolates(Isolation(warm=0)) as made:
        talk = await start(made, Limits(turn_cpu_ms=100))
        talk.tell("while True: pass")
        print((await talk.end()).reason, made.level, made._spawner._pidfd is not None)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(IMPORTS)},
        stdout=asyncio.subprocess.PIPE,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0
    level = await level_or_reason(Isolation(warm=0))
    assert output.strip() == f"cpu limit of 0.1 s exceeded {level} True"


async def test_a_switched_off_jail_stays_off() -> None:
    level = await level_or_reason(Isolation(warm=0, jail="off"))
    if "no wall around files" in level:
        pytest.skip("no Landlock on this host")
    assert "jail" not in level


def test_a_kernel_without_known_filters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "MACHINE", "riscv64")
    with pytest.raises(SandboxUnavailable, match="no seccomp filter that we know"):
        sandbox._require(True, None)


def everybody_can_reach(path: Path) -> bool:
    return all(place.stat().st_mode & 1 for place in path.resolve().parents)


async def test_imports_work_for_a_user_who_cannot_reach_the_interpreter() -> None:
    if os.geteuid() != 0 or everybody_can_reach(Path(os.__file__)):
        pytest.skip("everybody can reach the interpreter here")
    async with isolates(Isolation(warm=0, jail="off")) as made:
        try:
            talk = await start(made)
        except SandboxUnavailable as error:
            pytest.skip(str(error))
        assert (await talk.run("open(__import__('os').__file__)"))[0] == "PermissionError"
        state, text = await talk.run("import mailbox, xmlrpc.client; result = mailbox.__file__")
        assert state == "ok", text
        assert text.endswith("mailbox.py'")


async def jailed() -> bool:
    return "jail" in await level_or_reason(Isolation(warm=0))


async def test_a_tmp_is_private_and_bounded() -> None:
    if not await jailed():
        pytest.skip("no namespaces on this host")
    write = """
import os, tempfile
tmp = tempfile.gettempdir()
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("mine"); file.seek(0)
    assert file.read() == "mine"
with open(tmp + "/kept", "w") as file: file.write("kept")
"""
    fill = """
import tempfile
for number in range(64):
    with open(f"{tempfile.gettempdir()}/{number}", "wb") as file: file.write(b"x" * (1 << 20))
"""
    look = "import os, tempfile; result = os.listdir(tempfile.gettempdir())"
    async with isolates() as made:
        first = await start(made, Limits(tmp_mb=2))
        state, text = await first.run(write)
        assert state == "ok", text
        assert await first.run(look) == ("ok", "['kept']")
        state, text = await first.run(fill)
        assert "No space left" in text
        second = await start(made, Limits(tmp_mb=2))
        assert await second.run(look) == ("ok", "[]")
        third = await start(made)
        assert (await third.run("import tempfile; tempfile.TemporaryFile()"))[0] != "ok"


async def test_a_tmp_without_the_jail_is_refused() -> None:
    async with isolates(Isolation(warm=0, jail="off")) as made:
        with pytest.raises(SandboxUnavailable):
            await start(made, Limits(tmp_mb=2))


def test_packages_beside_the_standard_library_stay_hidden(tmp_path: Path) -> None:
    for name in ("json/__init__.py", "os.py", "site-packages/secret/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    granted = tmp_path / "site-packages" / "granted"
    granted.mkdir()
    (tmp_path / "away.py").symlink_to("/etc/passwd")
    readable = Readable([str(tmp_path)], [str(granted)])
    assert readable.hidden == [str(tmp_path / "site-packages")]
    assert sorted(readable.entries()) == sorted(
        str(path) for path in (tmp_path / "json", tmp_path / "os.py", granted)
    )
