"""The binding to llguidance: a grammar over a model's vocabulary, and its masks.

llguidance (github.com/guidance-ai/llguidance) parses with a derivative-based lexer and an Earley
parser, and finds the allowed tokens by walking a trie of the vocabulary. Only this module imports
it, so the runtime works without it: `runtime.grammar` looks for it when a grammar is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from .backends.base import Masks
from .text.tokenizer import Vocabulary

COMPILE_SECONDS = 0.5  # of processor time
MASK_SECONDS = 0.1  # of processor time, for the first mask; sound grammars take under 0.02

# Masks from which on threads are worth waking. The model's step runs meanwhile: on a CPU they would
# take its processors, which come to the same for fewer.
PARALLEL = 32

# Against hostile grammars. What they still can do is a mask of some 50 ms a step (nested bounded
# repetitions) where others take 0.1; a matcher that runs out of fuel ends its own request alone.
LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


class Matcher:
    """Where one sequence stands in its grammar."""

    def __init__(self, inner: LLMatcher, compiler: Compiler) -> None:
        self.inner = inner
        self.compiler = compiler

    def fork(self) -> Matcher:
        """A matcher of its own at the same place; it costs microseconds."""
        return Matcher(self.inner.deep_copy(), self.compiler)

    def after(self, tokens: Sequence[int]) -> Matcher:
        """A matcher of its own further on, past tokens that the grammar allows."""
        ahead = self.fork()
        ahead.inner.consume_tokens(list(tokens))
        return ahead

    def consume(self, token: int) -> bool:
        """Go on by a token; False where the grammar does not allow it, or gave up."""
        return self.inner.consume_token(token)

    def allows(self, tokens: Sequence[int]) -> int:
        """How many of these tokens may follow one another, and be followed by something."""
        ahead = self.inner.deep_copy()
        for count, token in enumerate(tokens):
            if not ahead.validate_tokens([token]):
                return count
            ahead.consume_token(token)
            if ahead.is_stopped():
                return count
        return len(tokens)

    @property
    def error(self) -> str:
        """Why it gave up, or nothing."""
        return self.inner.get_error()

    @property
    def stopped(self) -> bool:
        """Whether nothing may follow."""
        return self.inner.is_stopped()


class Compiler:
    """Compiles grammars for one vocabulary. `size` is the number of the model's logits.

    Raises ValueError where the vocabulary has no token that ends an answer.
    """

    def __init__(self, vocabulary: Vocabulary, size: int, threads: int = 0) -> None:
        self.words = -(-size // 32)
        self.size = size
        ends = sorted(vocabulary.end_ids)
        if not ends:
            raise ValueError("this model has no token that ends an answer")
        self.tokenizer = LLTokenizer(
            TokenizerWrapper(Spelling(vocabulary, size)), n_vocab=size, eos_token=ends
        )
        self.executor = LLExecutor(threads or None)

    def compile(self, grammar: str) -> Matcher:
        """A matcher at the start of `grammar`, in llguidance's own form. Raises ValueError."""
        began = time.thread_time()
        inner = LLMatcher(self.tokenizer, grammar, log_level=0, limits=LIMITS)
        compiled = time.thread_time()
        if not inner.is_error():
            inner.compute_bitmask()  # what it finds out is kept for the copies
        if inner.is_error():
            raise ValueError(reason(inner))
        ahead = inner.deep_copy()
        forced = ahead.compute_ff_tokens()
        if forced and not ahead.consume_token(forced[0]):  # forced without end: `start: "a" start`
            raise ValueError(reason(ahead))
        slow = time.thread_time() - compiled > MASK_SECONDS
        if slow or compiled - began > COMPILE_SECONDS:
            raise ValueError("it takes too long to compile")
        return Matcher(inner, self)

    def masks(self, rows: Sequence[Matcher | None]) -> Masks:
        """What each row's matcher allows next; many at once on the executor's threads."""
        constrained = [matcher for matcher in rows if matcher is not None]
        allowed = np.zeros((len(constrained), self.words), np.uint32)
        if len(constrained) < PARALLEL:
            for matcher, row in zip(constrained, allowed, strict=True):
                matcher.inner.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        else:
            work = [(matcher.inner, index) for index, matcher in enumerate(constrained)]
            self.executor.unsafe_compute_mask_ptr(
                work, allowed.ctypes.data, self.words * allowed.itemsize, len(work)
            )
        there = np.array([matcher is not None for matcher in rows])
        return Masks(np.where(there, np.cumsum(there) - 1, -1).astype(np.int32), allowed)


def reason(matcher: LLMatcher) -> str:
    """Why a matcher gave up, in words that its caller can use."""
    said = matcher.get_error().replace("<non-verbose/>", "").strip()
    return "no text is of it" if said == "NoExtensionBias" else said


class Spelling:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self.vocabulary = vocabulary
        self.eos_token_id = min(vocabulary.end_ids)
        self.bos_token_id = vocabulary.bos_id
        self.tokens = [vocabulary.label(token) for token in range(size)]
        self.special_token_ids = sorted(vocabulary.specials | vocabulary.end_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text."""
        whole = text if isinstance(text, str) else text.decode()
        return self.vocabulary.encode(whole, add_bos=False)
