"""The one exception tree of the platform; each leaf is one HTTP status.

HeadraceError
  InputError                 the caller's fault, 4xx
    InvalidField             400, names the field
    ContextTooLong           400, names both numbers
    MalformedBody            400, not JSON at all
    AuthenticationRequired   401
    PermissionDenied         403
    ModelNotFound            404
    NoModelFits              400, each model's reason
    NotFound                 404
    MethodNotAllowed         405
    RequestTimeout           408, the body did not come
    BodyTooLarge             413
    RateLimited              429, with Retry-After
    BudgetSpent              429, the key's money is spent
    RefusedByUpstream        the upstream's own 400, 404, 413 or 422
  ServiceError               our fault or an upstream's, 5xx
    InternalFault            500, carries nothing but the request id
    UpstreamError            502, the upstream said no or broke off
    EngineLost               503, the engine process died under the request
    Overloaded               503, with Retry-After
      TargetMissed           503, the first token would come too late
    TooLarge                 503, the model never fits the memory there is
    UpstreamTimeout          504

`str(error)` is safe to show to a caller. A dialect turns an error into its own body shape
(`protocol.openai_answer.error_body`).
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of all errors a caller may see."""

    status: int = 500
    kind: str = "server_error"
    code: str | None = None

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after  # seconds


class InputError(HeadraceError):
    """The request cannot be served as it is; sending it again unchanged will not help."""

    status = 400
    kind = "invalid_request_error"


class InvalidField(InputError):
    """A field has a wrong type or value; `param` is its path in the request body."""

    code = "invalid_value"

    def __init__(self, param: str, expected: str) -> None:
        super().__init__(f"Invalid '{param}': {expected}", param=param)


class ContextTooLong(InputError):
    """The prompt, or the prompt with the tokens asked for, cannot fit the model."""

    code = "context_length_exceeded"

    def __init__(self, *, limit: int, tokens: int, param: str = "messages") -> None:
        super().__init__(
            f"This model's maximum context length is {limit} tokens, "
            f"but the prompt has {tokens} tokens.",
            param=param,
        )


class MalformedBody(InputError):
    """The body is not valid JSON (or not valid UTF-8)."""

    code = "malformed_body"


class AuthenticationRequired(InputError):
    """No key, or one that is unknown, revoked or expired."""

    status = 401
    code = "invalid_api_key"


class PermissionDenied(InputError):
    """The key is good but may not do this."""

    status = 403
    kind = "permission_error"


class ModelNotFound(InputError):
    """No model, and no route, has this name."""

    status = 404
    code = "model_not_found"

    def __init__(self, model: str, known: tuple[str, ...] = ()) -> None:
        names = f" Available: {', '.join(known)}." if known else ""
        super().__init__(f"The model '{model}' does not exist.{names}", param="model")


class NoModelFits(InputError):
    """Models of that name exist, but none can do what the request or its rule asks."""

    code = "no_model_fits"

    def __init__(self, model: str, reasons: list[str]) -> None:
        said = "; ".join(reasons)
        super().__init__(f"No model for '{model}' can take this request. {said}.", param="model")


class NotFound(InputError):
    """No such path or object."""

    status = 404
    code = "not_found"


class MethodNotAllowed(InputError):
    """The path exists; the method does not."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(InputError):
    """The caller took too long to send its body."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(InputError):
    """The body is over the configured size."""

    status = 413
    code = "body_too_large"


class RateLimited(InputError):
    """The caller is over a limit; `retry_after` says when to come back."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class BudgetSpent(InputError):
    """The key's budget does not cover the request; waiting does not help."""

    status = 429
    kind = "insufficient_quota"
    code = "insufficient_quota"


class RefusedByUpstream(InputError):
    """A provider found the request itself wrong; its status, message, field and code are kept."""

    code = "refused_by_upstream"

    def __init__(
        self, message: str, *, status: int, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code if code is not None else RefusedByUpstream.code


class ServiceError(HeadraceError):
    """The request was good; the platform or an upstream could not serve it."""


class InternalFault(ServiceError):
    """A defect of ours. The message never carries its cause; the log does."""

    def __init__(self, message: str = "The server had an internal error.") -> None:
        super().__init__(message)


class StorageFull(ServiceError):
    """What is asked for has to be stored, and the server's disk is full."""

    status = 507
    code = "insufficient_storage"

    def __init__(self) -> None:
        super().__init__("The server's disk is full; nothing was stored.")


class UpstreamError(ServiceError):
    """A provider answered with an error, with nonsense, or broke off."""

    status = 502
    kind = "upstream_error"
    code = "upstream_error"

    def __init__(
        self, message: str, *, upstream_status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.upstream_status = upstream_status


class EngineLost(ServiceError):
    """The engine process died while the request ran; it is being started again."""

    status = 503
    kind = "engine_error"
    code = "engine_lost"


class Overloaded(ServiceError):
    """A bounded queue is full."""

    status = 503
    kind = "overloaded_error"
    code = "overloaded"


class TargetMissed(Overloaded):
    """The first token could not come within the request's `ttft_target`; nothing was computed."""

    code = "ttft_target_missed"


class TooLarge(ServiceError):
    """A model that can never fit the memory there is."""

    status = 503
    kind = "engine_error"
    code = "model_too_large"

    def __init__(self, model: str, needed: int, budget: int) -> None:
        gib = 2**30
        super().__init__(
            f"The model '{model}' needs {needed / gib:.2f} GiB, and all models together may take "
            f"{budget / gib:.2f} GiB (engine.memory)."
        )


class UpstreamTimeout(ServiceError):
    """A provider did not answer within one of its time-outs."""

    status = 504
    kind = "upstream_error"
    code = "upstream_timeout"
