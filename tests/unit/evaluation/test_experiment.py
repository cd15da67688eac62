from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from headrace.evaluation.dataset import Item
from headrace.evaluation.experiment import run
from headrace.evaluation.graders import Contains, Exact, LatencyUnder, Regex
from headrace.evaluation.report import summarise
from headrace.evaluation.specification import Dataset, Specification, Target

from .endpoint import completion, serving


def specified(url: str, **target: object) -> Specification:
    return Specification(
        name="test",
        dataset=Dataset(file="unused"),
        target=Target(model="m", base_url=url, **target),  # type: ignore[arg-type]
        graders=[Exact()],
        seed=7,
    )


def questions(count: int) -> list[Item]:
    return [Item(f"question {number}", f"question {number}") for number in range(count)]


async def test_every_item_is_asked_and_graded_in_the_order_of_the_data_set() -> None:
    async with serving(lambda question: question.replace("3", "4")) as endpoint:
        done: list[None] = []
        specification = specified(endpoint.url, concurrency=8)
        outcomes = await run(specification, questions(20), "k", lambda: done.append(None))
    assert [outcome.item for outcome in outcomes] == questions(20)
    failed = [n for n, outcome in enumerate(outcomes) if not outcome.grades[0].passed]
    assert failed == [3, 13]
    assert len(done) == 20
    assert {outcome.answer.call_id for outcome in outcomes} == {f"req-{n}" for n in range(1, 21)}
    assert endpoint.headers[0]["authorization"] == "Bearer k"
    assert endpoint.headers[0]["x-headrace-cache"] == "off"


async def test_the_target_is_sent_the_settings_of_the_file() -> None:
    async with serving(lambda _: "x") as endpoint:
        chat = specified(endpoint.url, temperature=0.5, top_p=0.9, stop=["."], max_tokens=9)
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
        await run(chat, [Item("q", "x"), Item(turns, "x")], None)
        plain = specified(endpoint.url, endpoint="completions")
        (outcome,) = await run(msgspec.structs.replace(plain, seed=None), [Item("q", "x")], None)
    settings = {"model": "m", "temperature": 0.5, "top_p": 0.9, "stop": ["."], "max_tokens": 9,
                "seed": 7}  # fmt: skip
    asked = sorted(endpoint.bodies[:2], key=lambda body: len(body["messages"]))
    assert asked[0] == settings | {"messages": [{"role": "user", "content": "q"}]}
    assert asked[1] == settings | {"messages": turns}
    assert endpoint.bodies[2] == {
        "model": "m", "prompt": "q", "max_tokens": 256, "temperature": 0.0,
    }  # fmt: skip
    assert "authorization" not in endpoint.headers[2]
    assert outcome.grades[0].passed


async def test_no_more_calls_run_at_once_than_stated() -> None:
    async with serving(lambda question: question) as endpoint:
        endpoint.hold = asyncio.Event()
        running = asyncio.create_task(
            run(specified(endpoint.url, concurrency=3), questions(30), None)
        )
        while endpoint.running < 3:
            await asyncio.sleep(0)
        endpoint.hold.set()
        await running
    assert endpoint.most_running == 3


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


REPLIES = {
    "no": web.json_response({"error": {"message": "slow\ndown"}}, status=429),
    "moved": web.Response(status=302, headers={"location": "/elsewhere"}),
    "html": web.Response(text="<html>", content_type="text/html"),
    "none": web.json_response({"choices": []}),
    "array": web.json_response([1]),
    "broken": web.Response(body=b'{"choices": [', content_type="application/json"),
    "tool": web.json_response(completion(None)),
}


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ("no", "HTTP 429: slow down"),
        ("moved", "HTTP 302: "),
        ("html", "the answer is not a completion"),
        ("none", "the answer has no choices"),
        ("array", "the answer is not a completion"),
        ("broken", "the answer is not a completion"),
    ],
)
async def test_a_failed_call_fails_every_grader_and_says_why(question: str, error: str) -> None:
    async with serving(lambda asked: REPLIES[asked]) as endpoint:
        specification = msgspec.structs.replace(
            specified(endpoint.url), graders=[LatencyUnder(seconds=100), Regex(pattern="")]
        )
        (outcome,) = await run(specification, [Item(question)], None)
    assert outcome.answer.error is not None
    assert outcome.answer.error.startswith(error)
    assert [grade.passed for grade in outcome.grades] == [False, False]


async def test_an_answer_without_text_is_an_empty_one() -> None:
    async with serving(lambda _: web.json_response(completion(None))) as endpoint:
        (outcome,) = await run(specified(endpoint.url), [Item("q", "x")], None)
    assert (outcome.answer.text, outcome.answer.error) == ("", None)
    assert not outcome.grades[0].passed


async def test_a_target_that_does_not_answer_in_time_or_is_not_there_fails_the_call(
    free_port: int,
) -> None:
    async with serving(lambda question: question) as endpoint:
        endpoint.hold = asyncio.Event()
        (late,) = await run(specified(endpoint.url, timeout=0.05), questions(1), None)
        endpoint.hold.set()
    assert late.answer.error == "no answer within 0.05 s"
    nowhere = specified(f"http://127.0.0.1:{free_port}/v1")
    (gone,) = await run(nowhere, questions(1), None)
    assert gone.answer.error is not None
    assert "ClientConnectorError" in gone.answer.error


async def test_a_cancelled_run_leaves_no_call_open() -> None:
    async with serving(lambda question: question) as endpoint:
        endpoint.hold = asyncio.Event()
        running = asyncio.create_task(run(specified(endpoint.url), questions(30), None))
        while endpoint.running < 4:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        asked = len(endpoint.bodies)
        endpoint.hold.set()
        while endpoint.running:
            await asyncio.sleep(0)
        assert len(endpoint.bodies) == asked == 4


async def test_a_run_leaves_no_process_behind() -> None:
    before = children()
    async with serving(lambda question: question) as endpoint:
        specification = msgspec.structs.replace(
            specified(endpoint.url), graders=[Regex(pattern="question")]
        )
        outcomes = await run(specification, questions(5), None)
    assert all(outcome.grades[0].passed for outcome in outcomes)
    assert children() == before


async def test_a_bar_is_held_against_the_lower_bound_or_the_mean_as_stated() -> None:
    async with serving(lambda question: "no" if question.endswith("9") else question) as endpoint:
        specification = msgspec.structs.replace(
            specified(endpoint.url),
            graders=[Exact(), Contains(name="without a bar")],
            bars={"exact": 0.85},
        )
        outcomes = await run(specification, questions(20), None)
    by_bound = summarise(specification, outcomes)
    assert by_bound.rows[0].passed.mean == 0.9
    assert [row.met for row in by_bound.rows] == [False, None]
    assert not by_bound.good
    by_mean = summarise(msgspec.structs.replace(specification, bars_on="mean"), outcomes)
    assert by_mean.rows[0].met is True
    assert by_mean.good


async def test_a_run_in_which_every_call_failed_is_not_good(free_port: int) -> None:
    specification = specified(f"http://127.0.0.1:{free_port}/v1")
    report = summarise(specification, await run(specification, questions(3), None))
    assert (report.failed, report.good) == (3, False)
    assert report.errors[0][1] == 3
