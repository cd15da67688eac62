"""The noun of the engine: one request on its way, from its prompt to its last token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .adapters import LoadedAdapter
from .kvcache import BlockTable
from .penalties import TokenCounts
from .request import SamplingParameters, TokenLogprob
from .text.answer import AnswerReader
from .text.detokenizer import Detokenizer, StopStrings
from .text.harmony import HarmonyReader

if TYPE_CHECKING:
    from .guidance import Matcher  # an optional part


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens` are the prompt and what was generated; the first `computed` are in the KV cache.

    While a step runs, its tokens are `coming`: computed may be one more than there are tokens.
    """

    id: str
    tokens: list[int]
    prompt_tokens: int
    limit: int  # longest `tokens` may grow
    sampling: SamplingParameters
    seed: int
    end_tokens: tuple[int, ...]  # any of these ends the generation
    salt: bytes  # sequences of one salt may share KV blocks
    detokenizer: Detokenizer
    stops: StopStrings
    counts: TokenCounts | None  # where the request's logits are edited
    arrived: float  # seconds, the engine's clock; so are `deadline`, `started`, `first_token`
    priority: int = 0
    deadline: float | None = None  # of the first token
    step_target: float | None = None  # seconds between its tokens
    started: float | None = None
    first_token: float | None = None
    computed: int = 0  # or are about to be, by a step that runs
    coming: int = 0  # tokens that steps that run will choose, as far as that is certain
    over: bool = False  # nothing that still comes is for anybody
    cached: int = 0  # prompt tokens that were in the KV cache when the request was admitted
    reader: AnswerReader | HarmonyReader | None = None  # where the answer is more than text
    matcher: Matcher | None = None  # where the answer is held to a grammar
    adapter: LoadedAdapter | None = None  # None: the base model
    table: BlockTable = field(default_factory=BlockTable)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens, with the one that is coming."""
        return len(self.tokens) + self.coming

    @property
    def pending(self) -> int:
        """Tokens that are not computed yet: 1 while decoding, more in prefill."""
        return self.length - self.computed

    @property
    def goes_on(self) -> bool:
        """Whether the token that is coming, if any is, is not the last that there is room for."""
        return self.length < self.limit

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_tokens
