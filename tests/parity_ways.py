"""Every way to have a server predict, each giving the JSON texts of the results just as they came.

From the REST API the text is cut out of the body, FastDeploy's and KServe's formats carry it as it is, and the Python clients'
results write it with `to_json`: that all of them are the same bytes is what `test_parity` asks.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from queue import Queue
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from numpy.typing import NDArray
from PIL import Image, ImageOps
from visionpool.results import Result

from tests.kserve_models import PATIENCE, Ask, Told
from tests.parity_clients import Clients

Options = Mapping[str, Any]


def query(options: Options) -> dict[str, Any]:
    """Options as a query string or KServe's parameters have them: classes with commas between."""
    return {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in options.items()}


def texts_in(body: bytes) -> list[bytes]:
    """The items of `results` in an answer of the REST API, character by character as they stand in it."""
    text, decoder, found = body.decode(), json.JSONDecoder(), []
    at = text.index('"results":[') + len('"results":[')
    while text[at] != "]":
        end = decoder.raw_decode(text, at)[1]
        found.append(text[at:end].encode())
        at = end + (text[end] == ",")
    return found


def pixels_of(picture: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, decoded without our code."""
    return np.array(ImageOps.exif_transpose(Image.open(BytesIO(picture))).convert("RGB"))


def _answer(response: httpx.Response) -> httpx.Response:
    assert response.status_code == 200, response.text
    return response


def _texts(results: Sequence[Result]) -> list[bytes]:
    return [result.to_json().encode() for result in results]


# REST


def body(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    (picture,) = pictures
    path = f"/v1/models/{model}/predict"
    return texts_in(_answer(clients.web.post(path, content=picture, params=query(options))).content)


def form(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    files = [("image", ("picture", picture)) for picture in pictures]
    return texts_in(
        _answer(clients.web.post(f"/v1/models/{model}/predict", files=files, params=query(options))).content
    )


def base64_in_json(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    said = {"images": [{"base64": base64.b64encode(picture).decode()} for picture in pictures]}
    return texts_in(_answer(clients.web.post(f"/v1/models/{model}/predict", json=said, params=query(options))).content)


def fastdeploy(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    (picture,) = pictures
    said = {"data": {"image": base64.b64encode(picture).decode()}, "parameters": dict(options)}
    told: str = _answer(clients.web.post(f"/fd/{model}", json=said)).json()["result"]
    return [told.encode()]


# The Python clients


def client(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    if len(pictures) == 1:
        return _texts([clients.client.predict(model, pictures[0], **options)])
    return _texts(clients.client.predict_many(model, pictures, **options))


def async_client(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    return _texts(clients.portal.call(partial(clients.async_client.predict_many, model, pictures, **options)))


def grpc_client(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    if len(pictures) == 1:
        return _texts([clients.grpc.predict(model, pictures[0], **options)])
    return _texts(clients.grpc.predict_many(model, pictures, **options))


def grpc_stream(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    return _texts(list(clients.grpc.stream(model, pictures, **options)))


def async_grpc_client(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    return _texts(clients.portal.call(partial(clients.async_grpc.predict_many, model, pictures, **options)))


def async_grpc_stream(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    async def read() -> list[Result]:
        return [result async for result in clients.async_grpc.stream(model, pictures, **options)]

    return _texts(clients.portal.call(read))


# KServe v2


def _asked(clients: Clients, model: str, pictures: Sequence[bytes], options: Options, *, column: bool = False) -> Ask:
    files = np.empty(len(pictures), object)
    files[:] = list(pictures)
    tensor = files[:, None] if column else files
    return Ask(model, {clients.picture_input(model): tensor}, outputs={"result": {}}, parameters=query(options))


def _told(told: Told) -> list[bytes]:
    assert list(told.outputs) == ["result"]
    return list(told.outputs["result"].ravel().tolist())


def kserve_http(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    return _told(clients.triton_http(_asked(clients, model, pictures, options)))


def kserve_grpc(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    return _told(clients.triton_grpc(_asked(clients, model, pictures, options)))


def kserve_grpc_column(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    return _told(clients.triton_grpc(_asked(clients, model, pictures, options, column=True)))


def kserve_grpc_typed(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    return _told(clients.typed(_asked(clients, model, pictures, options)))


def kserve_http_json(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    """Without a client library; the results are strings in the JSON of the answer."""
    data = b"".join(len(picture).to_bytes(4, "little") + picture for picture in pictures)
    tensor = {"name": clients.picture_input(model), "datatype": "BYTES", "shape": [len(pictures)]}
    said = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}],
        "outputs": [{"name": "result", "parameters": {"binary_data": False}}],
        "parameters": query(options),
    }
    head = json.dumps(said).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    (told,) = _answer(clients.web.post(f"/v2/models/{model}/infer", content=head + data, headers=headers)).json()[
        "outputs"
    ]
    return [text.encode() for text in told["data"]]


def kserve_stream(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    """Each picture a request of its own, all over one stream."""
    arrived: Queue[tuple[Any, Any]] = Queue()
    name = clients.picture_input(model)
    with triton_grpc.InferenceServerClient(clients.server.grpc) as stream:
        stream.start_stream(lambda result, error: arrived.put((result, error)))
        for picture in pictures:
            tensor = triton_grpc.InferInput(name, [1], "BYTES")
            tensor.set_data_from_numpy(np.array([picture], object))
            wanted = [triton_grpc.InferRequestedOutput("result")]
            stream.async_stream_infer(model, [tensor], outputs=wanted, parameters=query(options) or None)
        answers = [arrived.get(timeout=PATIENCE) for _ in pictures]
        stream.stop_stream()
    assert not any(error for _, error in answers), answers
    return [result.as_numpy("result").item() for result, _ in answers]


def _pixels(library: Any, address: str, clients: Clients, model: str, picture: bytes, options: Options) -> list[bytes]:
    pixels = pixels_of(picture)[None]
    tensor = library.InferInput(clients.picture_input(model), list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    with library.InferenceServerClient(address) as connected:
        wanted = [library.InferRequestedOutput("result")]
        told = connected.infer(model, [tensor], outputs=wanted, parameters=query(options) or None)
        return list(told.as_numpy("result").tolist())


def pixels_over_http(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    (picture,) = pictures
    address = clients.server.url.removeprefix("http://")
    return _pixels(triton_http, address, clients, model, picture, options)


def pixels_over_grpc(clients: Clients, model: str, pictures: Sequence[bytes], options: Options) -> list[bytes]:
    (picture,) = pictures
    return _pixels(triton_grpc, clients.server.grpc, clients, model, picture, options)


Way = Callable[[Clients, str, Sequence[bytes], Options], list[bytes]]
ONE: tuple[Way, ...] = (body, fastdeploy, pixels_over_http, pixels_over_grpc)  # picture at a time
SEVERAL: tuple[Way, ...] = (
    form,
    base64_in_json,
    client,
    async_client,
    grpc_client,
    grpc_stream,
    async_grpc_client,
    async_grpc_stream,
    kserve_http,
    kserve_http_json,
    kserve_grpc,
    kserve_grpc_column,
    kserve_grpc_typed,
    kserve_stream,
)
# What many threads may ask by at once: tritonclient's HTTP client belongs to one thread.
SHARED: tuple[Way, ...] = (
    body,
    form,
    fastdeploy,
    client,
    async_client,
    grpc_client,
    grpc_stream,
    async_grpc_client,
    kserve_http_json,
    kserve_grpc,
    kserve_grpc_typed,
)
