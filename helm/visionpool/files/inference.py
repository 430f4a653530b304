"""One inference over REST and one over gRPC: what `helm test` runs, in visionpool's image, with nothing but its environment."""

import os
import ssl
from pathlib import Path

import grpc
import httpx
import numpy as np
import visionpool

TIMEOUT = float(os.environ["TEST_TIMEOUT"])
PICTURE = np.full((96, 96, 3), 114, np.uint8)


def api_key() -> str | None:
    """The first key of the server's file, whose lines are KEY or NAME:KEY."""
    path = os.environ.get("TEST_KEYS")
    lines = [line.strip() for line in Path(path).read_text().splitlines()] if path else []
    keys = [(line.partition(":")[2] or line).strip() for line in lines if line and not line.startswith("#")]
    return keys[0] if keys else None


def certificate(variable: str, name: str) -> str | None:
    path = Path(os.environ.get(variable, "/none"), name)
    return str(path) if path.is_file() else None


def rest(url: str) -> visionpool.Client:
    context = ssl.create_default_context(cafile=certificate("TEST_TLS", "ca.crt"))
    if own := certificate("TEST_CLIENT_TLS", "tls.crt"):
        context.load_cert_chain(own, certificate("TEST_CLIENT_TLS", "tls.key"))
    transport = httpx.HTTPTransport(verify=context)
    return visionpool.Client(url, timeout=TIMEOUT, api_key=api_key(), transport=transport)


def over_grpc(address: str) -> visionpool.GrpcClient:
    pems = [("TEST_TLS", "ca.crt"), ("TEST_CLIENT_TLS", "tls.key"), ("TEST_CLIENT_TLS", "tls.crt")]
    paths = [certificate(*pem) for pem in pems]
    secure = grpc.ssl_channel_credentials(*(Path(path).read_bytes() if path else None for path in paths))
    credentials = secure if address.startswith("grpcs://") else None
    return visionpool.GrpcClient(address, timeout=TIMEOUT, api_key=api_key(), credentials=credentials)


def ask(client: visionpool.Client | visionpool.GrpcClient, how: str) -> None:
    """Predicts with the first model that takes pictures; where all of them take tensors, being listed has to do."""
    models = client.models()
    pictures = [model.name for model in models if model.task != "tensor"]
    if not pictures:
        print(f"{how}: no model takes pictures, served are {', '.join(model.name for model in models) or 'none'}")
        return
    result = client.predict(pictures[0], PICTURE)
    print(f"{how}: {pictures[0]} answered with {type(result).__name__}")


def ask_first(urls: list[str]) -> None:
    """Of several addresses, the first at which anything answers: KServe has two ways to publish a port."""
    for url in urls:
        with rest(url) as client:
            try:
                ask(client, "REST")
                break
            except visionpool.ConnectionFailed:
                if url == urls[-1]:
                    raise


ask_first(os.environ["TEST_HTTP"].split())
if address := os.environ.get("TEST_GRPC"):
    with over_grpc(address) as client:
        ask(client, "gRPC")
