"""How each gateway is started: its command, what its files say, the headers it wants."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
KEY = "sk-benchmark-0000000000000000"


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway that is ready to start on a port."""

    name: str
    version: str
    command: list[str]
    headers: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is found, its files go, it listens, and its upstream is."""

    found: str
    folder: Path
    port: int
    upstream: str


def said(*command: str) -> str:
    """What a command prints."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return (found.stdout + found.stderr).strip()


def output(*command: str) -> str:
    """The last line of what a command prints."""
    return said(*command).splitlines()[-1]


def nginx(place: Place) -> Peer:
    """Nginx as a reverse proxy: the floor. It reads nothing of what it passes on."""
    address = place.upstream.removeprefix("http://")
    configuration = f"""
        daemon off; worker_processes 1; pid {place.folder}/nginx.pid;
        error_log {place.folder}/nginx.log;
        events {{ worker_connections 8192; }}
        http {{
          access_log off; client_body_temp_path {place.folder}/body;
          proxy_temp_path {place.folder}/proxy; fastcgi_temp_path {place.folder}/f;
          uwsgi_temp_path {place.folder}/u; scgi_temp_path {place.folder}/s;
          upstream up {{ server {address}; keepalive 2048; keepalive_requests 1000000; }}
          server {{
            listen 127.0.0.1:{place.port} backlog=4096; keepalive_requests 1000000;
            location / {{
              proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection "";
              proxy_buffering off;
            }}
          }}
        }}
    """
    path = place.folder / "nginx.conf"
    path.write_text(configuration)
    command = [place.found, "-p", str(place.folder), "-c", str(path)]
    return Peer("nginx", output(place.found, "-v"), command, note="no keys, routing or records")


def passthrough(place: Place) -> Peer:
    """Starlette and aiohttp with nothing between them."""
    command = [place.found, str(HERE / "passthrough.py"), str(place.port), place.upstream]
    return Peer("pass-through", "", command, note="no keys, routing or records")


def headrace(place: Place) -> Peer:
    """This gateway with all that it does: a key with limits and a budget, routing, records and
    metrics; no cache, as nothing else here has one."""
    configuration = {
        "server": {"port": place.port, "max_concurrent_requests": 4096},
        "providers": {"up": {"base_url": f"{place.upstream}/v1", "max_connections": 4096}},
        "models": {"m": {"provider": "up", "source": "m", "price": {"input": 1, "output": 2}}},
        "cache": {"enabled": False},
        "log": {"directory": str(place.folder)},
    }
    path = place.folder / "headrace.yaml"
    path.write_text(json.dumps(configuration))
    command = [place.found, "-m", "headrace.cli.main"]
    limits = ["--rpm", "10000000", "--tpm", "2000000000", "--budget", "1000000"]
    create = ["keys", "create", "--name", "benchmark", *limits, "--config", str(path)]
    told = said(*command, *create)
    key = re.search(r"hr-\S+", told)
    if key is None:
        raise RuntimeError("no key was made: " + told)
    return Peer(
        "headrace",
        "",
        [*command, "serve", str(path)],
        {"authorization": f"Bearer {key[0]}"},
        note="a key with limits and a budget, routing, records and metrics",
    )


def litellm(place: Place) -> Peer:
    """LiteLLM's proxy, one worker, with its master key."""
    configuration = {
        "model_list": [
            {
                "model_name": "m",
                "litellm_params": {
                    "model": "openai/m",
                    "api_base": f"{place.upstream}/v1",
                    "api_key": "sk-none",
                },
            }
        ],
        "general_settings": {"master_key": KEY},
    }
    path = place.folder / "litellm.yaml"
    path.write_text(json.dumps(configuration))
    folder = Path(place.found)
    command = [str(folder / "bin/litellm"), "--config", str(path), "--host", "127.0.0.1"]
    command += ["--port", str(place.port), "--num_workers", "1"]
    read = "from importlib.metadata import version; print(version('litellm'))"
    return Peer(
        "LiteLLM",
        output(str(folder / "bin/python"), "-c", read),
        command,
        {"authorization": f"Bearer {KEY}"},
        {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        "master key; no database, so no records",
    )


def portkey(place: Place) -> Peer:
    """Portkey's gateway from npm."""
    package = Path(place.found) / "node_modules/@portkey-ai/gateway"
    command = ["node", str(package / "build/start-server.js"), f"--port={place.port}", "--headless"]
    return Peer(
        "Portkey",
        json.loads((package / "package.json").read_text())["version"],
        command,
        {
            "authorization": "Bearer sk-none",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{place.upstream}/v1",
        },
        note="no keys or records in this edition",
    )


PEERS: Mapping[str, Callable[[Place], Peer]] = {
    "nginx": nginx,
    "pass-through": passthrough,
    "headrace": headrace,
    "portkey": portkey,
    "litellm": litellm,
}
DEFAULTS = {"nginx": "nginx", "pass-through": sys.executable, "headrace": sys.executable}
