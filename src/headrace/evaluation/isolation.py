"""Grading by a user's pattern, in a process that can be killed.

A regular expression, or one inside a JSON schema, may take exponential time on some answer, and
nothing in Python can stop it from outside. So these graders run in a child process, and one
that takes too long is killed with it: the answer fails with that note, the run goes on.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import msgspec
from msgspec import Struct

from headrace.evaluation.graders import Expected, Grade, Grader, grade

SECONDS = 5.0  # for one answer and one grader
NOTE = 1000  # characters of a note that are kept


class Task(Struct, frozen=True):
    """One answer to grade."""

    grader: Grader
    answer: str
    expected: Expected
    seconds: float


class IsolatedGrader:
    """A child process that grades; started when first needed, and again after it was killed."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def grade(self, task: Task) -> Grade:
        """Grade one answer; one that takes too long has failed."""
        async with self._turn:
            process = self._process or await self._start()
            try:
                async with asyncio.timeout(self._seconds):
                    return await _exchange(process, task)
            except TimeoutError:
                note = f"the grader took over {self._seconds:g} s and was stopped"
            except (EOFError, OSError, msgspec.DecodeError):
                note = "the grader's process died"
            await self.close()
            return Grade(task.grader.name, passed=False, note=note)

    async def close(self) -> None:
        """End the child process."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # no module of the directory it happens to run in
            "-m",
            "headrace.evaluation.isolation",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._process = process
        if process.stdout is not None:
            await process.stdout.readline()  # it is ready: its imports are not the grader's time
        return process


async def _exchange(process: asyncio.subprocess.Process, task: Task) -> Grade:
    if process.stdin is None or process.stdout is None:
        raise EOFError
    process.stdin.write(msgspec.json.encode(task) + b"\n")
    await process.stdin.drain()
    return msgspec.json.decode(await process.stdout.readline(), type=Grade)


def main() -> None:
    """Answer each line of standard input, a task, by one line: its grade."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it too, without a word
    decoder = msgspec.json.Decoder(Task)
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        task = decoder.decode(line)
        signal.alarm(round(SECONDS) + 1)  # ends this process even if its parent is gone
        found = grade(task.grader, task.answer, task.expected, task.seconds)
        signal.alarm(0)
        kept = msgspec.structs.replace(found, note=found.note[:NOTE])
        sys.stdout.buffer.write(msgspec.json.encode(kept) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
