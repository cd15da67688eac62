"""The schema of headrace.yaml. Every field has a default; `Configuration()` serves by itself.

Types are checked by msgspec when the file is read (`config.load`); what spans several fields
(names that refer to each other) is checked there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Dollars = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Weight = Annotated[float, Meta(gt=0)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

OVER = "#"  # between a model and the adapter over it, as the local engine knows them
UNITS = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
LOCAL = "local"  # the name of the built-in provider: our own engine
DEFAULT_MODEL = "smollm2-135m"  # what is served where no model is named


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the gateway listens and what it accepts.

    `admin_key` refers to a secret, with which the page and the admin API answer to other machines.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    max_body_bytes: Count = 16 * 1024 * 1024
    max_concurrent_requests: Count = 1024
    admin_key: str | None = None


class Timeouts(Struct, frozen=True, forbid_unknown_fields=True):
    """Time-outs of an upstream call, in seconds."""

    connect: Seconds = 5.0
    first_token: Seconds = 60.0
    between_tokens: Seconds = 30.0
    whole: Seconds = 600.0  # of an answer that comes at once
    pool: Seconds = 5.0


class Probe(Struct, frozen=True, forbid_unknown_fields=True):
    """Asking whether all is well: so many seconds after the last call or probe told, and how many
    seconds the answer may take. Without `every` nothing is asked."""

    every: Annotated[float, Meta(ge=1)] | None = None
    timeout: Seconds = 10.0


WireDialect = Literal["openai", "azure", "anthropic", "gemini", "bedrock", "mistral", "cohere"]

# Where a dialect's own provider is, for a configuration that names no address; Azure's and
# Bedrock's depend on the account.
ADDRESSES: Mapping[str, str] = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta",
    "mistral": "https://api.mistral.ai/v1",
    "cohere": "https://api.cohere.com/v2",
}


class UpstreamProvider(Struct, frozen=True, forbid_unknown_fields=True):
    """A remote provider. Keys refer to secrets: `env:NAME`.

    `key` is an API key. `api_version` is Azure's, for addresses by deployment. Bedrock is called
    in `region`, with `key` as a bearer token, or signed where `access_key` is given: then `key` is
    the secret access key and `session_token` goes with temporary ones. To other dialects `region`
    is a label that rules can ask for.
    """

    base_url: str | None = None
    dialect: WireDialect = "openai"
    key: str | None = None
    api_version: str | None = None
    access_key: str | None = None
    session_token: str | None = None
    timeouts: Timeouts = Timeouts()
    max_connections: Count = 256
    region: str | None = None
    probe: Probe = Probe()

    @property
    def address(self) -> str | None:
        """Where it is; None where nothing says it."""
        if self.base_url is not None:
            return self.base_url
        if self.dialect == "bedrock" and self.region is not None:
            return f"https://bedrock-runtime.{self.region}.amazonaws.com"
        return ADDRESSES.get(self.dialect)


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Requests and tokens a minute, and requests at once; null is no limit."""

    rpm: Count | None = None
    tpm: Count | None = None
    concurrent: Count | None = None


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """Dollars per million tokens; `image` for one image, `minute` for one of sound heard,
    `characters` for a million spoken. A price of which nothing is given but for cached tokens is
    not known; of a known one, what is not given is 0, and for cached tokens and those written to a
    cache `input`."""

    input: Dollars | None = None
    output: Dollars | None = None
    cached_input: Dollars | None = None
    cache_write: Dollars | None = None
    cache_write_1h: Dollars | None = None  # as `cache_write` where it is not given
    image: Dollars | None = None
    minute: Dollars | None = None
    characters: Dollars | None = None

    @property
    def known(self) -> bool:
        """Whether it says anything."""
        return (
            self.input is not None
            or self.output is not None
            or self.image is not None
            or self.minute is not None
            or self.characters is not None
        )


EndpointName = Literal[
    "chat", "completions", "messages", "responses", "embeddings", "rerank", "classify",
    "images", "image_edits", "speech", "transcriptions", "translations",
    "moderations",
]  # fmt: skip


class Model(Struct, frozen=True, forbid_unknown_fields=True):
    """A model by the name callers use.

    `source` is a model reference for the local engine, the upstream's own name of the model
    otherwise. `adapter` is the reference of a LoRA adapter over it, for the local engine.
    `context` and `max_output` are in tokens. `tools`, `images`, `audio` (what is sent to it),
    `json_schema` and `reasoning` say what it can do, `endpoints` what may be asked of it; what is
    not given is as `config.capabilities` knows it, else it is tried. `prefill` says that it goes on
    where a last turn of the assistant stops. `quality` is what rules compare until
    an evaluation has measured it.
    """

    source: str
    adapter: str | None = None
    provider: str = LOCAL
    price: Price = Price()
    context: Count | None = None
    max_output: Count | None = None
    tools: bool | None = None
    images: bool | None = None
    audio: bool | None = None
    json_schema: bool | None = None
    reasoning: bool | None = None
    endpoints: tuple[EndpointName, ...] = ()
    prefill: bool = False
    quality: Share | None = None
    limits: Limits = Limits()
    probe: Probe = Probe()

    @property
    def rates(self) -> Price | None:
        """What its tokens cost; None where that is not known. Nobody bills for our own engine's."""
        if self.price.known:
            return self.price
        return Price(input=0.0, output=0.0) if self.provider == LOCAL else None

    @property
    def upstream(self) -> str:
        """What its provider knows it by."""
        return self.source if self.adapter is None else f"{self.source}{OVER}{self.adapter}"


class Match(Struct, frozen=True, forbid_unknown_fields=True):
    """Conditions of a route; all that are given must hold.

    `prompt_over` and `prompt_under` are in tokens, estimated. `hours` is `HH:MM-HH:MM` in UTC.
    """

    model: str | None = None
    key: str | None = None
    tags: dict[str, str] = {}
    headers: dict[str, str] = {}
    prompt_over: Count | None = None
    prompt_under: Count | None = None
    tools: bool | None = None
    images: bool | None = None
    endpoint: EndpointName | None = None
    dialect: Literal["openai", "anthropic"] | None = None
    hours: str | None = None
    days: tuple[Day, ...] = ()


class Within(Struct, frozen=True, forbid_unknown_fields=True):
    """What a model must promise to be tried. `max_cost` is dollars for the request; latencies are
    predictions in seconds."""

    max_cost: Dollars | None = None
    ttft_under: Seconds | None = None
    itl_under: Seconds | None = None
    quality_over: Share | None = None
    regions: tuple[str, ...] = ()


class Route(Struct, frozen=True, forbid_unknown_fields=True, rename={"attempts": "try"}):
    """A rule: the first one whose `when` holds says which models to try, and how.

    Exactly one of `try`, `split`, `cheapest`, `fastest` and `best` is given. `then` are models to
    try after those. `deadline` and `hedge_after` are seconds from the call's start, and from an
    attempt's, to the first event; `max_extra_cost` bounds the dollars for attempts that do not
    serve.
    """

    name: str
    attempts: tuple[str, ...] = ()  # `try` in the file
    split: dict[str, Weight] = {}
    cheapest: tuple[str, ...] = ()
    fastest: tuple[str, ...] = ()
    best: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    when: Match = Match()
    within: Within = Within()
    sticky: str | None = None  # a header; None: the caller's user, else the conversation
    retries: Annotated[int, Meta(ge=0, le=10)] = 0
    deadline: Seconds | None = None
    hedge_after: Seconds | None = None
    max_extra_cost: Dollars | None = None
    on_break: Literal["error", "continue"] = "error"

    @property
    def models(self) -> tuple[str, ...]:
        """Every model this route may try, as the file lists them."""
        return (
            *self.attempts,
            *self.split,
            *self.cheapest,
            *self.fastest,
            *self.best,
            *self.then,
        )


class Engine(Struct, frozen=True, forbid_unknown_fields=True):
    """How the local engine runs its models."""

    backend: Literal["auto", "cuda", "cpu", "reference"] = "auto"
    threads: Annotated[int, Meta(ge=0)] = 0  # 0: as many as this process may use
    kv_tokens: Count | None = None  # null: what a GPU has room for, elsewhere 32,768
    kv: Literal["auto", "f16", "int8", "fp8"] = "auto"  # entries of the KV cache
    memory: str | None = None  # of all models together, as "8GiB"; null: what there really is
    kv_offload: str | None = None  # host memory for KV that a GPU has to give away, as "16GiB"
    quantization: Literal["int8", "int4", "fp8"] | None = (
        None  # of float weights, when they are loaded
    )
    draft: str | None = None  # a reference: a smaller model of the same vocabulary drafts tokens
    tensor_parallel: Count = 1  # GPUs that share each model
    max_batch_tokens: Count = 512
    max_sequences: Count = 64
    max_waiting: Count = 1024
    max_step: Seconds = 0.1  # of a step in which a prompt is computed beside running answers

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes. Raises ValueError."""
        return None if self.memory is None else _bytes(self.memory)

    @property
    def kv_offload_bytes(self) -> int:
        """`kv_offload` in bytes. Raises ValueError."""
        return 0 if self.kv_offload is None else _bytes(self.kv_offload)


def _bytes(text: str) -> int:
    """The size that "512MiB" or "1.5GiB" says."""
    number, unit = text[:-3].strip(), text[-3:]
    if unit not in UNITS or not 0 < float(number) < 2**20:
        raise ValueError(text)
    return int(float(number) * UNITS[unit])


class Cache(Struct, frozen=True, forbid_unknown_fields=True):
    """The exact response cache."""

    enabled: bool = True
    ttl: Seconds = 3600.0
    max_bytes: Count = 64 * 1024 * 1024


class Files(Struct, frozen=True, forbid_unknown_fields=True):
    """What callers may store: bytes of one file, and of all files of one key."""

    max_bytes: Count = 200 * 1024 * 1024
    max_total_bytes: Count = 10 * 1024**3


class Batches(Struct, frozen=True, forbid_unknown_fields=True):
    """How many lines of batches run at once, on our own engines and on remote providers each."""

    concurrency: Annotated[int, Meta(ge=1, le=256)] = 16


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """Where calls are recorded. None: `~/.local/share/headrace` (or `$HEADRACE_HOME`)."""

    directory: str | None = None
    content: bool = True  # record input and output, not only their sizes


class Logging(Struct, frozen=True, forbid_unknown_fields=True):
    """What is said on standard error: `requests` is a line of JSON for each, `format` is that of
    everything else."""

    requests: bool = False
    format: Literal["text", "json"] = "text"


class Configuration(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    server: Server = Server()
    limits: Limits = Limits()
    engine: Engine = Engine()
    providers: dict[str, UpstreamProvider] = {}
    models: dict[str, Model] = field(
        default_factory=lambda: {DEFAULT_MODEL: Model(source=DEFAULT_MODEL)}
    )
    routes: tuple[Route, ...] = ()
    cache: Cache = Cache()
    files: Files = Files()
    batches: Batches = Batches()
    log: Log = Log()
    logging: Logging = Logging()
