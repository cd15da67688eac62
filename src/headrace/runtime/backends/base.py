"""The contract of a backend: it runs one model's step program over ragged batches.

A backend is built by a function `load(program, weights, kv) -> Backend` of its module.
Everything that depends on lengths is planned on the host, in a `Batch`, once a step.

A step is launched, told how its tokens are chosen, and waited for; while it runs the host does
something else, such as to plan the next one. `run` is all three at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..models.program import Program
from ..weights.lowrank import LowRank
from ..weights.tensor import Tensor

KVType = Literal["f16", "int8", "fp8"]
Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Filling:
    """For a KV cache that takes what a device has free: what must have room beside it.

    That is the weights and any step of up to `rows` rows, `sequences` sequences of up to `context`
    tokens each, and `ranked` likely tokens for each row. `most`: bytes that all may take together,
    None: what is free.
    """

    rows: int
    sequences: int
    context: int
    ranked: int
    most: int | None = None


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The paged KV cache: `blocks` blocks of `block_size` slots, each a token's key and value.

    "f16": entries of 16 bits, or more where the backend has more. "int8": a key or value of one
    head is a float32 scale, its largest magnitude over 127, and an integer -127 to 127 a dimension.
    "fp8": likewise, the scale being the largest magnitude over 448, and E4M3 (OCP FP8) a dimension.

    With a `filling`, a backend whose device has memory of its own takes as many blocks as fit
    there, and says how many in `Backend.kv`.
    """

    blocks: int
    block_size: int = 32
    dtype: KVType = "f16"
    filling: Filling | None = None
    host_bytes: int = 0  # for blocks in host memory, of a backend that `Offloads`


@dataclass(frozen=True, slots=True)
class Edits:
    """Changes to single logits before a token is chosen, sparse.

    Row r has the entries starts[r] to starts[r + 1]. A logit becomes
    (logit / divisor where it is positive, logit · divisor where not) + addend.
    """

    starts: Int32  # [samples + 1]
    tokens: Int32  # [entries]
    divisors: Float32  # [entries]
    addends: Float32  # [entries]; -inf forbids the token


@dataclass(frozen=True, slots=True)
class Masks:
    """Which tokens a grammar allows: bit t % 32 of word t // 32 is token t's."""

    rows: Int32  # [samples] index into `allowed`, -1 where all tokens are
    allowed: NDArray[np.uint32]  # [masks, ceil(vocabulary / 32)]


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How each sampled row's token is chosen; arrays of one value a sampled row.

    The logits are edited and masked first. temperature 0 takes the most likely token (the lowest
    id among equals). Otherwise the logits are divided by it, cut to the top_k largest (0: all),
    then to the smallest set whose probability reaches top_p, then to the tokens at least min_p
    times as likely as the most likely one, and the token is the one at `uniform` on the
    cumulative distribution, tokens in descending order of probability (ties by ascending id). The
    backend rolls no dice: `uniform` in [0, 1) comes from the request's seed.

    A row whose `target` is not -1 chooses nothing: its token is the target. `ranked` most likely
    tokens are reported with their log-probabilities for every row (those of the model: before
    edits, masks and temperature).
    """

    temperature: Float32
    top_k: Int32
    top_p: Float32
    min_p: Float32
    uniform: Float32
    target: Int32
    ranked: int = 0
    edits: Edits | None = None
    masks: Masks | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step. Rows of a sequence are adjacent and in order of position."""

    tokens: Int32  # [rows]
    positions: Int32  # [rows]
    slots: Int32  # [rows] KV slot the row writes: block · block_size + offset
    row_starts: Int32  # [sequences + 1] first row of each sequence, then the number of rows
    context_lengths: Int32  # [sequences] KV entries of the sequence once this step is written
    block_tables: Int32  # [sequences, widest] block ids; past the end of a sequence: -1
    sampled_rows: Int32  # [samples] rows whose logits are sampled, ascending
    sampling: SamplingRows | None  # None: `Pending.choose` brings it while the step runs
    given: Int32 | None = None  # [sequences] tokens that were given, not chosen; None: none
    types: Int32 | None = None  # [rows] token types, of encoders that have them; None: all 0
    adapters: Int32 | None = None  # [sequences] number of its adapter, -1: none; None: all -1
    # [rows] sample of the step before whose token this row has, -1: that in `tokens`; None: all -1
    carried: Int32 | None = None

    def fill(self, before: Sampled) -> None:
        """Put the carried tokens, now that the step before is over, where they belong."""
        if self.carried is not None:
            np.copyto(self.tokens, before.tokens[self.carried], where=self.carried >= 0)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The chosen tokens and their log-probabilities (natural log, of the model's own softmax)."""

    tokens: Int32  # [samples]
    logprobs: Float32  # [samples]
    ranked_tokens: Int32 | None = None  # [samples, ranked], most likely first
    ranked_logprobs: Float32 | None = None  # [samples, ranked]
    seconds: float = 0.0  # that the step took


class Pending(Protocol):
    """A step that was launched."""

    def choose(self, rows: SamplingRows) -> None:
        """Say how tokens are chosen, once, where the batch did not; then the step can end.

        Raises ValueError, MemoryError: the step is lost.
        """
        ...

    def wait(self) -> Sampled:
        """What was chosen, when the step is over. Asked again, it says the same again.

        Raises MemoryError where the step did not fit, ValueError where it is lost.
        """
        ...


class Backend(Protocol):
    """One loaded model on one device."""

    kv: KVLayout
    # A step that is launched while another runs follows it by itself: nothing waits for the host.
    queues: bool

    def launch(self, batch: Batch, after: Pending | None = None) -> Pending:
        """Begin to run the whole program over the batch, after all that was launched before.

        `after` is the step before, where the batch has `carried` tokens; it may still run, and its
        sampling is known. One that never learnt it is lost now. Raises ValueError (batch) and
        MemoryError where the step does not fit; KV slots outside the batch stay intact.
        """
        ...

    def run(self, batch: Batch) -> Sampled:
        """Launch a batch that has its sampling, and wait."""
        ...

    def logits(self, batch: Batch) -> Float32:
        """As `run`, but return the logits, float32 [samples, vocabulary]."""
        ...

    def kernels(self) -> Mapping[str, str]:
        """Which kernel runs each kind of op, as "linear Q4_1" -> "avx512-vnni"."""
        ...

    def load_adapter(self, number: int, deltas: Mapping[str, LowRank]) -> None:
        """Let sequences whose `Batch.adapters` is `number` run with these changes.

        By weight of a Linear; what was there under the number is replaced. Raises ValueError
        where a change does not fit, MemoryError.
        """
        ...

    def drop_adapter(self, number: int) -> None:
        """Release an adapter; its number may not be in a batch any more."""
        ...

    def close(self) -> None:
        """Release weights and KV."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Which rank of how many runs a program that was cut (`models.sharding`), and where they meet.

    `meeting` is an empty file that nobody else may open.
    """

    rank: int
    size: int
    meeting: Path


class Group(Protocol):
    """The ranks that run a model together. All of them call the same in the same order.

    A rank that is gone is a RuntimeError for the others.
    """

    rank: int
    size: int

    def sum(self, rows: Float32) -> None:
        """Add up all ranks' rows, in place: every rank gets the same bits."""
        ...

    def gather(self, part: Float32, widths: Sequence[int]) -> Float32:
        """All ranks' parts [rows, widths[rank]] side by side on rank 0; on others their own."""
        ...

    def leave(self) -> None:
        """Release what the group holds."""
        ...


class GroupLost(RuntimeError):
    """A rank failed in a step: the ranks do not agree any more, and no step can be run."""


class Move(NamedTuple):
    """A copy of a KV block: of the device, and of host memory; `out` of the device, or into it."""

    block: int
    slot: int
    out: bool


class Transfer(Protocol):
    """Moves that were begun."""

    def done(self) -> bool:
        """Whether they are over."""
        ...

    def join(self) -> None:
        """Let steps that are launched from now on wait for their end; the host does not."""
        ...


@runtime_checkable
class Offloads(Protocol):
    """A backend that keeps KV blocks in host memory as well: `host_blocks` of them."""

    host_blocks: int

    def copy_blocks(self, moves: Sequence[Move]) -> Transfer:
        """Begin moves in their order, after all steps that were launched, and before any to come
        writes over a block that goes out. Raises MemoryError: some may have been made."""
        ...


@runtime_checkable
class Sleeps(Protocol):
    """A backend on a device of its own, which it can leave to others for a while."""

    def sleep(self) -> None:
        """Keep the weights in host memory and free the device's; what the KV cache holds is lost.

        Nothing is launched until `wake`. Raises MemoryError: then nothing has changed.
        """
        ...

    def wake(self) -> None:
        """Take the device's memory again, if it sleeps. Raises MemoryError: then it sleeps on."""
        ...


class Load(Protocol):
    """How a backend comes to be."""

    def __call__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        kv: KVLayout,
        threads: int,
        place: Place | None = None,
    ) -> Backend:
        """Compile `program` over `weights`; `threads` 0 takes all processors allowed.

        `place`: that of a rank, where the program is one's part; waits until all ranks are there.
        """
        ...
