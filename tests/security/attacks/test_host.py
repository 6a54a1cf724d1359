"""What another user of the host tries against an embedded platform: its files, sockets and ports.

Each attack is a program that runs as `nobody`, and again as the platform's own user, where it has
to succeed: so a wall that stands in nobody's way is noticed. The table is in docs/isolation.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ray_world import effects, loader_of, processes

import dynamic_workflows as dw
from dynamic_workflows.actors.cluster import open_ports, orphan_reaper

# The platform lives in the loop of the module, so whatever blocks runs in a thread.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc"),
]

NOBODY = 65534


@dataclass
class Target:
    """Where everything of the platform lies: an attacker is told all that could be found out."""

    folder: str
    token: str
    session: str
    log: str
    stored: str
    gcs: int
    http: list[int]
    ports: list[int]
    pids: list[int]
    guests: list[str]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    place = tmp_path_factory.mktemp("host")
    for folder in [place, *place.parents]:
        if folder.owner() == Path.home().owner() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)  # the walls are the platform's own
        if folder.parent == Path("/tmp"):
            break
    log = place / "log"
    config = dw.PlatformConfig(isolation="unsafe-none", pool_size=0, dashboard=True)
    async with dw.connect(log, load=loader_of(place / "effects"), config=config) as platform:
        instance = await platform.tenant("acme").workflows.create(id="a", params={"steps": 1})
        await instance.result(timeout=120)
        assert effects(place / "effects")
        yield target_of(log)


def target_of(log: Path) -> Target:
    import ray

    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    folder = str(Path(token).parent)
    pids = [os.getpid(), *orphan_reaper.members(folder, spared=os.getpid()), *processes("")]
    listeners = {
        **open_ports._ports("/proc/net/tcp"),
        **open_ports._ports("/proc/net/tcp6"),
    }
    ports = {
        listeners[inode][1]: bytes(Path(f"/proc/{pid}/cmdline").read_bytes()[:400])
        for pid in pids
        for inode in open_ports._sockets(pid) & listeners.keys()
    }
    (session,) = Path(folder, "ray").glob("session_2*")
    return Target(
        folder=folder,
        token=token,
        session=str(session),
        log=str(log),
        stored=str(next((log / "code").iterdir())),
        gcs=int(ray.get_runtime_context().gcs_address.rpartition(":")[2]),
        http=[
            port for port, title in ports.items() if b"Agent" in title or b"dashboard.py" in title
        ],
        ports=list(ports),
        pids=sorted(set(pids)),
        guests=[
            Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            for pid in processes("import sys; stdlib")
        ],
    )


PRELUDE = """
import http.client, json, os, shutil, socket, sys
import grpc
target = json.loads(sys.argv[1])
token = None
RIGHTS = {}

def request(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **RIGHTS})
        answer = connection.getresponse()
        print(port, path, answer.status, answer.reason, file=sys.stderr)
        return answer.status, answer.headers.get_content_type()
    except TimeoutError:
        return -1, ""  # who is let in may have to wait
    except (OSError, http.client.HTTPException):
        return 0, ""  # it speaks something else
    finally:
        connection.close()

def call(port, method, body=b""):
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(body, timeout=5, metadata=tuple(RIGHTS.items()))
        except grpc.RpcError as error:
            return error.code().name
    return "OK"

# What they import, they import now: the other user may not read Python's own files.
request(1, "GET", "/")
call(1, "/none/none")
if os.getuid() == 0 and sys.argv[2] == "other":
    os.setgroups([]); os.setgid(65534); os.setuid(65534); os.environ["HOME"] = "/"
elif sys.argv[2] == "owner":
    token = open(target["token"]).read()
    RIGHTS = {"authorization": f"Bearer {token}"}
elif sys.argv[2] == "guesser":
    RIGHTS = {"authorization": "Bearer " + "0" * 64}
"""

FILES = {
    "read the token": "open(target['token']).read(); open_ = True",
    "list the runtime folder": "open_ = bool(os.listdir(target['folder']))",
    "list Ray's sockets": "open_ = bool(os.listdir(target['session'] + '/sockets'))",
    "read a log file of Ray": (
        "name = next(n for n in LOGS if n.startswith('raylet'))\n"
        "open_ = open(target['session'] + '/logs/' + name).read() is not None"
    ),
    "plant a link among Ray's logs": (
        "os.symlink('/etc/passwd', path := target['session'] + '/logs/planted')\n"
        "os.unlink(path); open_ = True"
    ),
    "replace a log file of Ray": (
        "path = target['session'] + '/logs/mine'\n"
        "open(path, 'w').close(); os.unlink(path); open_ = True"
    ),
    "connect to the raylet's socket": (
        "with socket.socket(socket.AF_UNIX) as s:\n"
        "    s.connect(target['session'] + '/sockets/raylet'); open_ = True"
    ),
    "connect to the object store's socket": (
        "with socket.socket(socket.AF_UNIX) as s:\n"
        "    s.connect(target['session'] + '/sockets/plasma_store'); open_ = True"
    ),
    "swap the runtime folder": (
        "os.rename(target['folder'], target['folder'] + '-taken')\n"
        "os.rename(target['folder'] + '-taken', target['folder']); open_ = True"
    ),
    "list the log": "open_ = bool(os.listdir(target['log']))",
    "read stored code": "open(target['stored'], 'rb').read(); open_ = True",
    "plant a link in the log": (
        "os.symlink('/etc', path := target['log'] + '/planted'); os.unlink(path); open_ = True"
    ),
    "read the environment of the platform": (
        "open_ = all(open(f'/proc/{pid}/environ', 'rb').read() is not None\n"
        "            for pid in target['pids'] if os.path.exists(f'/proc/{pid}'))"
    ),
}
JOB = json.dumps({"entrypoint": "id"})
PORTS = {
    "submit a job over HTTP": (
        "REACHED = (200, 400, 500) if not token else (-1, 200, 400, 500)\n"
        f"open_ = any(request(p, 'POST', path, {JOB!r})[0] in REACHED for p in target['http']\n"
        "            for path in ('/api/jobs/', '/api/job_agent/jobs/'))"
    ),
    "read the dashboard's list of nodes": (
        # The ports of the metrics answer 200 to any path, in plain text.
        "open_ = any(request(p, 'GET', '/nodes?view=summary') == (200, 'application/json')\n"
        "            for p in target['http'])"
    ),
    "ask the control service for all actors": (
        "open_ = call(target['gcs'], '/ray.rpc.ActorInfoGcsService/GetAllActorInfo') == 'OK'"
    ),
    "write to the control service": (
        # A request with namespace, key and value.
        "body = bytes([0x12, 1, 65, 0x1a, 1, 66, 0x20, 1])\n"
        "open_ = call(target['gcs'], '/ray.rpc.InternalKVGcsService/InternalKVPut', body) == 'OK'"
    ),
    "call any port by gRPC": (
        "METHODS = ['NodeInfoGcsService/GetAllNodeInfo', 'NodeManagerService/GetNodeStats',\n"
        "    'NodeManagerService/RequestWorkerLease', 'CoreWorkerService/PushTask',\n"
        "    'CoreWorkerService/GetCoreWorkerStats', 'CoreWorkerService/KillActor',\n"
        "    'ObjectManagerService/Pull', 'ReporterService/GetTraceback']\n"
        "open_ = False\n"
        "refused = 0\n"
        "for port in target['ports']:\n"
        "    for method in METHODS[: 1 if token else None]:\n"
        "        code = call(port, '/ray.rpc.' + method)\n"
        "        print(port, method, code, file=sys.stderr)\n"
        "        refused += code == 'UNAUTHENTICATED'\n"
        "        if code in ('DEADLINE_EXCEEDED', 'UNAVAILABLE'):\n"
        "            break  # no gRPC is spoken there\n"
        "        if code not in ('UNAUTHENTICATED', 'UNIMPLEMENTED'):\n"
        "            open_ = True\n"
        "assert token or refused >= 13, 'the ports of GCS, raylet and actors were not there'"
    ),
}


async def tried(code: str, target: Target, who: str) -> str:
    return await asyncio.to_thread(run, code, target, who)


def run(code: str, target: Target, who: str) -> str:
    """The outcome of an attack: 'open', or 'blocked' with the reason."""
    logs = os.listdir(Path(target.session, "logs"))
    program = PRELUDE + f"LOGS = {logs!r}\n" + "open_ = False\ntry:\n"
    program += textwrap.indent(code, "    ")
    program += "\nexcept OSError as error:\n    print('blocked:', error)\n"
    program += "else:\n    print('open' if open_ else 'blocked')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, json.dumps(asdict(target)), who],
        env={name: v for name, v in os.environ.items() if not name.startswith("RAY_")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(who, done.stdout, done.stderr)
    return done.stdout.strip()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("attack", FILES)
async def test_another_user_gets_at_no_file_and_no_socket(target: Target, attack: str) -> None:
    assert (await tried(FILES[attack], target, "other")).startswith("blocked:")
    assert await tried(FILES[attack], target, "owner") == "open"


@pytest.mark.parametrize("attack", PORTS)
async def test_no_port_does_anything_for_who_has_not_the_token(target: Target, attack: str) -> None:
    assert await tried(PORTS[attack], target, "other") == "blocked"
    assert await tried(PORTS[attack], target, "guesser") == "blocked"
    assert await tried(PORTS[attack], target, "owner") == "open"


async def test_no_port_is_open_on_another_address(target: Target) -> None:
    await asyncio.to_thread(check_addresses, target)


def check_addresses(target: Target) -> None:
    assert open_ports.beyond_loopback(target.pids) == []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("192.0.2.1", 9))
            mine = route.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no other address")
    for port in target.ports:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((mine, port), timeout=5)


async def test_the_token_is_in_no_command_line_and_no_environment(target: Target) -> None:
    await asyncio.to_thread(check_texts, target)


def check_texts(target: Target) -> None:
    text = Path(target.token).read_bytes()
    seen = 0
    for pid in target.pids:
        for name in ("cmdline", "environ"):
            try:
                assert text not in Path(f"/proc/{pid}/{name}").read_bytes()
                seen += 1
            except FileNotFoundError:
                continue
    assert seen > 10
    # Isolates and their zygote do not even learn where it lies.
    assert target.guests
    assert not any("RAY_" in environment for environment in target.guests)


CONNECT = """
import asyncio, sys
import dynamic_workflows as dw

async def main():
    try:
        async with dw.connect(sys.argv[1], address=sys.argv[2], namespace="other"):
            print("joined")
    except dw.WorkflowsError as error:
        print(error.code, error)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "asks for a token, and this program has shown none"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "1" * 64}, "refused the token"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "1" * 64}, "has shown none"),
    ],
)
async def test_a_driver_without_the_token_is_told_so_within_seconds(
    target: Target, tmp_path: Path, variables: dict[str, str], says: str
) -> None:
    environment: dict[str, Any] = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    }
    begun = time.monotonic()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CONNECT, str(tmp_path), f"127.0.0.1:{target.gcs}"],
        env=environment | variables | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("platform.unavailable"), done.stderr
    assert says in done.stdout
    assert time.monotonic() - begun < 30, "ten seconds, and the start of Python on a busy machine"
