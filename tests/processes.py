"""One run in several processes of this machine, over loopback; none of them outlives its time."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PATIENCE_SECONDS = 200


class Ended(NamedTuple):
    """How a process ended, and what it said."""

    code: int
    seconds: float  # since the wait for it began
    out: str
    errors: str


def free_port() -> int:
    """A port that nothing listens on, and that is given to nobody who asks for any (Linux: 32768 and more)."""
    while True:
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", random.randrange(20_000, 30_000)))
            return tried.getsockname()[1]


@contextlib.contextmanager
def started(folder: Path, script: Path, count: int, *arguments: str, devices: int = 1) -> Iterator[list]:
    """`count` processes of the script, each with so many devices. At the end of the `with` those that are left are
    killed. Their output is in `folder`; what they compile is kept where these tests keep it."""
    folder.mkdir(parents=True, exist_ok=True)
    at = f"127.0.0.1:{free_port()}"
    children = []
    try:
        for number in range(count):
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
                "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
                "JAX_PLATFORMS": "cpu",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_COORDINATOR_ADDRESS": at,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            }
            with (folder / f"{number}.out").open("w") as out, (folder / f"{number}.err").open("w") as errors:
                command = [sys.executable, str(HERE / "cached.py"), str(script), *arguments]
                pipe = subprocess.PIPE
                child = subprocess.Popen(command, env=environment, stdin=pipe, stdout=out, stderr=errors, cwd=folder)
            children.append(child)
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def said(folder: Path, number: int) -> tuple[str, str]:
    """(output, errors) of a process so far."""
    out, errors = ((folder / f"{number}.{kind}").read_text(errors="replace") for kind in ("out", "err"))
    return out, errors


def wait_until(happened: Any, children: list, folder: Path) -> None:
    """Until something happens in a run all of whose processes go on."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        for number, child in enumerate(children):
            assert child.poll() is None, f"process {number} has ended with {child.returncode}: {said(folder, number)}"
        assert time.monotonic() < deadline, f"no progress: {[said(folder, i) for i in range(len(children))]}"
        time.sleep(0.002)


def go(children: list, folder: Path) -> None:
    """Let processes begin that have all said "ready"."""
    wait_until(lambda: all("ready\n" in said(folder, i)[0] for i in range(len(children))), children, folder)
    for child in children:
        child.stdin.write(b"\n")
        child.stdin.close()
        child.stdin = None


def ends(children: list, folder: Path, within: float = PATIENCE_SECONDS) -> list[Ended]:
    """How each process ended; that one does not, within so many seconds, is a failure."""
    began, done = time.monotonic(), {}
    while len(done) < len(children):
        for number, child in enumerate(children):
            if number not in done and child.poll() is not None:
                done[number] = Ended(child.returncode, time.monotonic() - began, *said(folder, number))
        late = [(i, said(folder, i)) for i in range(len(children)) if i not in done]
        assert time.monotonic() - began < within, f"still there after {within} seconds: {late}; ended: {done}"
        time.sleep(0.02)
    return [done[number] for number in range(len(children))]


def well(ended: list[Ended]) -> None:
    """Make sure that all of them came to their end."""
    assert not any(each.code for each in ended), "\n\n".join(f"{each.code}: {each.errors[-4000:]}" for each in ended)


def run(folder: Path, count: int, *, devices: int = 1, **options: Any) -> list[Ended]:
    """`pod_run.py` in so many processes, from its beginning to its end."""
    arguments = json.dumps(options)
    with started(folder, HERE / "pod_run.py", count, arguments, devices=devices) as children:
        go(children, folder)
        return ends(children, folder)
