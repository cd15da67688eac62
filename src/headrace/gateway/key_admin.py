"""The admin API of keys; `gateway.door` and `gateway.admin` say who may call it.

GET    /admin/keys            all keys, without their secrets
POST   /admin/keys            {"name": ..., "budget", "rpm", "tpm", "concurrent", "models",
                              "expires"}: the new key, its secret told this once
DELETE /admin/keys/{name}     revoke; no call after the answer is let in
"""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.gateway.admin import MAX_BODY, guarded
from headrace.gateway.admission import check_type, read_body
from headrace.gateway.keyring import OPEN_TENANT, Keyring
from headrace.gateway.keystore import Key, KeyExists
from headrace.protocol.errors import InvalidField, NotFound
from headrace.protocol.json import decode_object

JSON = "application/json"
log = logging.getLogger(__name__)
Count = Annotated[int, Meta(ge=1, lt=2**31)]
Name = Annotated[str, Meta(pattern=r"^[\x21-\x7e]([\x20-\x7e]{0,62}[\x21-\x7e])?$")]


class NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    """The key that is asked for. `expires` is Unix seconds."""

    name: Name
    budget: Annotated[float, Meta(ge=0)] | None = None
    rpm: Count | None = None
    tpm: Count | None = None
    concurrent: Count | None = None
    models: tuple[str, ...] = ()
    expires: float | None = None

    def key(self) -> Key:
        """The key to store. Raises InvalidField."""
        if self.name == OPEN_TENANT:
            raise InvalidField("name", f"'{OPEN_TENANT}' is who called before there were keys.")
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return Key(id="", digest="", hint="", **fields)


def key_routes(keyring: Keyring) -> list[Route]:
    """The routes over `keyring`."""

    async def keys(request: Request) -> Response:
        if request.method == "POST":
            return await _create(keyring, request)
        found = await asyncio.to_thread(lambda: keyring.opened().every())
        return Response(
            msgspec.json.encode({"keys": [_shown(key) for key in found]}), 200, None, JSON
        )

    async def key(request: Request) -> Response:
        name = request.path_params["name"]
        if not await asyncio.to_thread(lambda: keyring.opened().revoke(name)):
            raise NotFound(f"There is no key '{name[:64]}' to revoke.")
        await asyncio.to_thread(keyring.changed)
        return Response(status_code=204)

    return [
        Route("/admin/keys", guarded(keys), methods=["GET", "POST"]),
        Route("/admin/keys/{name}", guarded(key), methods=["DELETE"]),
    ]


async def _create(keyring: Keyring, request: Request) -> Response:
    check_type(request.headers)
    body = await read_body(request.headers, request.receive, MAX_BODY)
    try:
        wish = msgspec.convert(decode_object(body), NewKey)
    except msgspec.ValidationError as error:
        raise InvalidField("body", str(error)) from None
    try:
        made, secret = await asyncio.to_thread(lambda: keyring.opened().create(wish.key()))
    except KeyExists:
        raise InvalidField("name", f"the name '{wish.name}' is or was in use.") from None
    try:
        await asyncio.to_thread(keyring.changed)
    except SQLAlchemyError as error:  # the key is there, and its secret is told only now
        log.error("The key '%s' is not in force yet: %s", made.name, error)
    return Response(msgspec.json.encode({**_shown(made), "key": secret}), 201, None, JSON)


def _shown(key: Key) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(key)
    del shown["digest"]
    return shown
