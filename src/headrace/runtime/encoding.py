"""Many callers of one encoder: their texts share steps of bounded size, one by one in turn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .embedding import Encoded, Encoder, Vectors, probabilities, whole_texts
from .request import Counters, EncodeRequest, Encoding, RequestRefused

MAX_WAITING = 1024  # requests


@dataclass(slots=True)
class _Job:
    request: EncodeRequest
    encoded: list[Encoded]
    found: Vectors
    begun: int = 0  # texts that ran


class EncoderQueue:
    """The requests of one encoder. `step` does the work; all else asks or tells."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.jobs: dict[str, _Job] = {}
        self.steps = self.tokens = self.cancelled = 0

    @property
    def idle(self) -> bool:
        """Whether `step` would have nothing to do."""
        return not self.jobs

    def submit(self, request: EncodeRequest) -> None:
        """Queue a request. Raises RequestRefused where it never can run."""
        if len(self.jobs) >= MAX_WAITING:
            raise RequestRefused("busy", "the encoder's queue is full")
        encoder, head = self.encoder, self.encoder.model.head
        if request.task == "embed":
            encoder.check_dimensions(request.dimensions)
        elif request.task == "classify":
            encoder.labels()
        elif head is not None and len(head.labels) != 1:
            raise RequestRefused("invalid_value", "this model gives no one score", field="model")
        encoded = [self.read(request, text) for text in request.texts]
        if request.task == "rank" and head is None:
            # A model that embeds ranks by the angle between query and document.
            encoded.append(encoder.reader.read(request.query, truncate=request.truncate))
        found = np.empty((len(encoded), encoder.outputs), np.float32)
        self.jobs[request.id] = _Job(request, encoded, found)

    def read(self, request: EncodeRequest, text: str | tuple[int, ...]) -> Encoded:
        """One text of a request as the model reads it. Raises RequestRefused."""
        reader, model = self.encoder.reader, self.encoder.model
        if isinstance(text, str):
            if request.task == "rank" and model.head is not None:
                return reader.read(request.query, text, truncate=request.truncate)
            return reader.read(text, truncate=request.truncate)
        if not text or not all(0 <= token < model.vocabulary for token in text):
            expected = f"token ids must be integers from 0 to {model.vocabulary - 1}"
            raise RequestRefused("invalid_value", expected, field="input")
        if len(text) > reader.longest:
            raise RequestRefused(
                "context_too_long",
                f"the text has {len(text)} tokens, the model reads {reader.longest}",
                limit=reader.longest,
                tokens=len(text),
            )
        return Encoded(text, (0,) * len(text))

    def cancel(self, id: str) -> None:
        """Drop a request; what is not there (any more) is left."""
        if self.jobs.pop(id, None) is not None:
            self.cancelled += 1

    def step(self) -> list[Encoding]:
        """Run one step over texts of all requests in turn: those requests that are done by it.

        Raises what the backend raises; the requests of the step stay.
        """
        taken = self.take()
        batch = whole_texts([job.encoded[place] for job, place in taken])
        values = self.encoder.backend.logits(batch)
        self.steps += 1
        self.tokens += len(batch.tokens)
        for row, (job, place) in enumerate(taken):
            job.found[place] = values[row]
        done = [job for job in self.jobs.values() if job.begun == len(job.encoded)]
        for job in done:
            del self.jobs[job.request.id]
        return [self.result(job) for job in done]

    def take(self) -> list[tuple[_Job, int]]:
        """The texts of the next step: one of each request in turn, up to the bounds of a step.

        Who had a turn goes behind those who had none.
        """
        taken = self.next_texts()
        for id in dict.fromkeys(job.request.id for job, _ in taken):
            self.jobs[id] = self.jobs.pop(id)
        return taken

    def next_texts(self) -> list[tuple[_Job, int]]:
        """The texts of the next step, in turn from the request that waited longest."""
        options = self.encoder.options
        taken: list[tuple[_Job, int]] = []
        rows = 0
        waiting = list(self.jobs.values())
        while waiting:
            for job in waiting:
                rows += len(job.encoded[job.begun].tokens)
                if taken and (rows > options.batch_tokens or len(taken) == options.batch_texts):
                    return taken
                taken.append((job, job.begun))
                job.begun += 1
            waiting = [job for job in waiting if job.begun < len(job.encoded)]
        return taken

    def result(self, job: _Job) -> Encoding:
        """What a request that ran is told."""
        encoder, request = self.encoder, job.request
        labels: tuple[str, ...] = ()
        if request.task == "embed":
            values = encoder.vectors_of(job.found, request.dimensions)
        elif request.task == "classify":
            values, labels = probabilities(job.found), encoder.labels()
        elif encoder.model.head is None:
            unit = job.found / np.linalg.norm(job.found, axis=1, keepdims=True).clip(1e-12)
            values = unit[:-1] @ unit[-1:].T
        else:
            values = encoder.scores_of(job.found)[:, None]
        tokens = sum(len(one.tokens) for one in job.encoded)
        return Encoding(
            request.id,
            np.ascontiguousarray(values, "<f4").tobytes(),
            values.shape[1],
            tokens,
            labels,
        )

    def counters(self) -> Counters:
        """The encoder's state in numbers."""
        return Counters(
            running=sum(job.begun > 0 for job in self.jobs.values()),
            waiting=sum(job.begun == 0 for job in self.jobs.values()),
            steps=self.steps,
            prompt_tokens=self.tokens,
            cancelled=self.cancelled,
        )
