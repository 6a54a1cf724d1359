"""Runs one target, or each in turn, with atheris.

`python tests/security/fuzz/run.py [--seconds N] [name]`

What was learnt stays in .cache/fuzz and is where the next run goes on; bytes that break a target
are written there too, and belong into `test_fuzz.py` once the reason is mended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "security"), str(ROOT / "tests" / "support")]
KEPT = ROOT / ".cache" / "fuzz"
_BYTES_MAX = 4_096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", help="only this one, in this process")
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    given = parser.parse_args()
    if given.target:
        fuzz(given.target, given.seconds)
        return 0
    from fuzz.targets import TARGETS

    failed = []
    for name in TARGETS:
        print(f"--- {name}", flush=True)
        seconds = max(1, given.seconds // len(TARGETS))
        command = [sys.executable, __file__, name, "--seconds", str(seconds)]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
    print(f"broken: {', '.join(failed)} (see {KEPT})" if failed else "nothing broke")
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process, with 0 when nothing was found."""
    import atheris

    with atheris.instrument_imports(include=["dynamic_workflows"]):
        from fuzz.targets import TARGETS, seeds
    corpus, crashes = KEPT / name, KEPT / "crashes"
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={_BYTES_MAX}",
            "-timeout=60",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            f"-artifact_prefix={crashes}/{name}-",
            str(corpus),
        ],
        TARGETS[name],
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
