"""The server: what it answers, what it refuses and how, that one client does not harm another, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers_service import POSITIONS, SAMPLES, WIDTH, connect, request, save_integer_model, windows

from whisper_hailo_hf import RequestError
from whisper_hailo_hf.backends.base import states_of_core
from whisper_hailo_hf.model_loading import encoder_of
from whisper_hailo_hf.service import health
from whisper_hailo_hf.service.certificates import make_test_authority
from whisper_hailo_hf.service.device_queue import DeviceQueue, QueueFull
from whisper_hailo_hf.service.running import _beat, background_server
from whisper_hailo_hf.service.settings import ServerSettings
from whisper_hailo_hf.service.supervision import notify_systemd, watchdog_seconds
from whisper_hailo_hf.wire import SERVICE
from whisper_hailo_hf.wire.client import Connection, RemoteError
from whisper_hailo_hf.wire.messages import STATES_AS, EncodeRequest, EncodeResponse, Tensor
from whisper_hailo_hf.wire.tensors import pack_audio, unpack_tensor

TOKEN = "a-token-that-is-long-enough"
_Code = grpc.StatusCode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_integer_model(tmp_path_factory.mktemp("integers"))


@pytest.fixture(scope="module")
def server(folder):
    settings = ServerSettings(port=0, metrics_port=0, reflection=True, message_timeout=1.0, idle_timeout=2.0)
    with background_server(folder, settings, "emulator") as server:
        yield server


@pytest.fixture
def client(server):
    client = connect(server)
    yield client
    client.close()


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def raw(channel, method="Encode"):
    return channel.unary_unary(f"/{SERVICE}/{method}")


def refused(call, *args, **kwargs) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call(*args, **kwargs)
    return raised.value.code(), raised.value.details()


# What it answers


def test_description(server, client):
    found = client.describe()
    encoder = encoder_of(server.served.encoder)
    assert (found.mel_bins, found.frames, found.positions, found.d_model) == (8, 60, POSITIONS, WIDTH)
    assert found.backend == "emulator"
    assert len(found.core_sha256) == len(found.host_sha256) == len(found.artefact_sha256) == 64
    assert found.input.scale == pytest.approx(float(encoder.backend.integers()[0].scale))


def test_integers_are_the_network_s_own(server, client):
    features = windows(1)[0]
    message = client.encode(request(features, states_as="CORE")).result()
    packed = unpack_tensor(message.states)
    backend = server.served.encoder.backend
    assert packed.values.dtype == np.uint8
    assert message.core
    assert np.array_equal(packed.real(), backend.core_states(features[None])[0])
    states = states_of_core(server.served.encoder.host, torch.from_numpy(packed.real())[None])
    assert np.array_equal(states.numpy(), backend.encode(features[None]))


@pytest.mark.parametrize(("states_as", "dtype"), [("FLOAT32_STATES", np.float32), ("FLOAT16_STATES", np.float16)])
def test_finished_states(server, client, states_as, dtype):
    features = windows(1)[0]
    found = unpack_tensor(client.encode(request(features, states_as=states_as)).result().states).values
    assert found.dtype == dtype
    np.testing.assert_allclose(found, server.served.encoder.backend.encode(features[None])[0], atol=3e-3)


def test_only_the_first_positions(client):
    whole = unpack_tensor(client.encode(request()).result().states).values
    part = unpack_tensor(client.encode(request(positions=7)).result().states).values
    assert np.array_equal(part, whole[:7])


@pytest.mark.parametrize("coding", ["flac", "pcm"])
def test_audio_is_heard_as_its_features(server, client, make_speech, coding):
    samples = 0.9 * make_speech(0.5)
    asked = EncodeRequest(sample_id="a", audio=pack_audio(samples, coding), states_as=STATES_AS["FLOAT32_STATES"])
    found = unpack_tensor(client.encode(asked).result().states).values
    features = server.served._heard(np.rint(samples * 32768).astype(np.float32) / 32768)
    assert features.shape == (8, 60)
    np.testing.assert_allclose(found, server.served.encoder.backend.encode(features[None])[0], atol=1e-6)


def test_a_stream_answers_in_order_and_goes_on_behind_a_failure(client):
    asked = [request(one, str(i), "FLOAT32_STATES") for i, one in enumerate(windows(20))]
    asked[7].features.scale, asked[7].features.dtype = 1.0, 3  # bytes do not fit
    found = list(client.stream(asked))
    assert [one.sample_id for one in found] == [one.sample_id for one in asked]
    assert [one.status.code for one in found] == [3 if i == 7 else 0 for i in range(20)]
    alone = client.encode(asked[19]).result()
    assert found[19].states == alone.states


def test_a_stream_holds_a_fast_client_back(folder):
    """While the device is busy, a client can send what the transport holds, and no more."""
    sent, gate, most = 0, threading.Event(), 10_000

    def endless():
        nonlocal sent
        while sent < most:
            sent += 1
            yield request(sample_id="x" * 1000)

    with background_server(folder, ServerSettings(port=0), "torch") as stuck:
        run = stuck.served.encoder.backend.encode
        stuck.served.encoder.backend.encode = lambda features: gate.wait(20) and run(features)
        client = connect(stuck)
        answers = client.stream(endless())
        time.sleep(1.5)
        first = sent
        time.sleep(0.5)
        assert sent == first < most / 4
        assert stuck._queue.depth <= stuck.settings.queue_per_client
        gate.set()
        next(answers)
        answers.cancel()
        client.close()


def test_deadline_of_one_sample_in_a_stream(folder):
    settings = ServerSettings(port=0, batch=1)
    with background_server(folder, settings, "torch") as slow:
        backend = slow.served.encoder.backend
        run = backend.encode
        backend.encode = lambda features: time.sleep(0.3) or run(features)
        client = connect(slow)
        found = list(client.stream([request(sample_id="a"), request(sample_id="b", timeout_ms=50)]))
        assert [one.status.code for one in found] == [0, _Code.DEADLINE_EXCEEDED.value[0]]
        client.close()


def test_health_and_reflection(channel):
    check = health_pb2_grpc.HealthStub(channel).Check
    for name in ("", SERVICE):
        assert check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.SERVING
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    assert set(pool.FindServiceByName(SERVICE).methods_by_name) == {"Describe", "Encode", "EncodeStream"}


def watched(channel, request=b""):
    return channel.unary_stream(f"/{health.SERVICE_NAME}/Watch")(request)


def kind(message: bytes) -> str:
    status = health_pb2.HealthCheckResponse.FromString(message).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def test_who_watches_the_health_hears_each_change_and_holds_up_no_end(folder):
    with (
        background_server(folder, ServerSettings(port=0), "torch") as ending,
        grpc.insecure_channel(f"127.0.0.1:{ending.port}") as channel,
    ):
        said = watched(channel)
        unknown = watched(channel, health_pb2.HealthCheckRequest(service="x").SerializeToString())
        assert (kind(next(said)), kind(next(unknown))) == ("SERVING", "SERVICE_UNKNOWN")
        ending.loop.call_soon_threadsafe(ending._set_health, False)
        assert kind(next(said)) == "NOT_SERVING"
        ending.loop.call_soon_threadsafe(ending._set_health, True)
        assert kind(next(said)) == "SERVING"
        start = time.monotonic()
        asyncio.run_coroutine_threadsafe(ending.stop(), ending.loop).result(20)
        assert kind(next(said)) == "NOT_SERVING"
        assert refused(next, said)[0] is _Code.UNAVAILABLE
        assert time.monotonic() - start < 5


def test_health_of_what_is_not_here_and_too_many_watchers(server, channel, client):
    ask = channel.unary_unary(f"/{health.SERVICE_NAME}/Check")
    assert refused(ask, health_pb2.HealthCheckRequest(service="x").SerializeToString())[0] is _Code.NOT_FOUND
    assert refused(ask, b"\xff")[0] is _Code.INVALID_ARGUMENT
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as other:
        watchers = [watched(channel) for _ in range(8)] + [watched(other) for _ in range(8)]
        assert {kind(next(one)) for one in watchers} == {"SERVING"}
        assert refused(next, watched(connect(server)._channel))[0] is _Code.RESOURCE_EXHAUSTED
        assert client.encode(request()).result().states.data
        for one in watchers:
            one.cancel()


def test_metrics(server, client):
    client.encode(request()).result()
    text = urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics").read().decode()
    counts = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert counts["whisper_hailo_windows_total"] >= 1
    assert counts['whisper_hailo_calls_total{code="OK",method="Encode"}'] >= 1
    assert counts["whisper_hailo_queue_windows"] == 0


# What it refuses


def spoiled(value: float) -> np.ndarray:
    features = windows(1)[0]
    features[3, 30] = value
    return features


@pytest.mark.parametrize(
    ("asked", "code", "line"),
    [
        (request(spoiled(np.nan)), _Code.INVALID_ARGUMENT, "not finite"),
        (request(spoiled(np.inf)), _Code.INVALID_ARGUMENT, "not finite"),
        (request(spoiled(1e6)), _Code.INVALID_ARGUMENT, "no log-mel"),
        (request(windows(1)[0][:, :50]), _Code.INVALID_ARGUMENT, r"shape \[8, 50\]: this encoder takes \[8, 60\]"),
        (EncodeRequest(), _Code.INVALID_ARGUMENT, "neither features nor audio"),
        (EncodeRequest(features=Tensor(dtype=2, shape=[8, 60])), _Code.INVALID_ARGUMENT, "0 bytes for a float16"),
        (request(states_as="AUTO", positions=31), _Code.INVALID_ARGUMENT, "31 positions, and there are 30"),
        (request(sample_id="x" * 2000), _Code.INVALID_ARGUMENT, "sample_id"),
        (request(core_sha256="0" * 64), _Code.FAILED_PRECONDITION, "the request means others"),
        (
            EncodeRequest(audio=pack_audio(np.zeros(SAMPLES + 1, np.float32))),
            _Code.INVALID_ARGUMENT,
            "more than one window",
        ),
    ],
)
def test_requests_that_will_not_do(client, asked, code, line):
    found, details = refused(client.encode(asked).result)
    assert found is code
    assert re.search(line, details)
    assert client.encode(request()).result().states.data  # and it serves on


def test_messages_that_are_none(channel, client):
    assert refused(raw(channel), b"\xff\xff\xff")[0] is _Code.INVALID_ARGUMENT
    assert refused(raw(channel, "Describe"), b"\xff\xff\xff")[0] is _Code.INVALID_ARGUMENT
    assert refused(raw(channel, "Nothing"), b"")[0] is _Code.UNIMPLEMENTED
    found = list(channel.stream_stream(f"/{SERVICE}/EncodeStream")(iter([b"\xff\xff"])))
    assert EncodeResponse.FromString(found[0]).status.code == _Code.INVALID_ARGUMENT.value[0]
    assert client.encode(request()).result().states.data


def test_giant_message(channel, client):
    sent = client.encode(request(np.zeros((8, 100_000), np.float32)))
    with pytest.raises(RemoteError, match="a message is too large") as raised:
        client.answer(request(), sent)
    assert not raised.value.again
    assert refused(raw(channel), bytes(3_000_000))[0] is _Code.RESOURCE_EXHAUSTED
    assert client.encode(request()).result().states.data


def test_a_small_message_that_unpacks_to_a_giant(server, client):
    """Refused before it is unpacked to more than a message may be."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{server.port}"
    with grpc.insecure_channel(address, options, compression=grpc.Compression.Gzip) as packing:
        assert refused(raw(packing), bytes(40_000_000)) == (
            _Code.RESOURCE_EXHAUSTED,
            "Decompressed message larger than max",
        )
    assert client.encode(request()).result().states.data


def test_expired_deadline(server, channel, client, monkeypatch):
    backend, gate = server.served.encoder.backend, threading.Event()
    run = backend.core_states
    with monkeypatch.context() as patch:
        patch.setattr(backend, "core_states", lambda features: gate.wait(20) and run(features))
        assert refused(raw(channel), request().SerializeToString(), timeout=0.3)[0] is _Code.DEADLINE_EXCEEDED
        gate.set()
    assert client.encode(request()).result().states.data


def test_mutated_messages(channel, client):
    """Every answer is a state of a valid request or a status that says it is not valid."""
    dice, send = random.Random(0), raw(channel)
    whole = request(positions=3).SerializeToString()
    codes = []
    for _ in range(1500):
        message = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            where = dice.choice([dice.randrange(40), dice.randrange(len(message))]) % len(message)
            kind = dice.random()
            if kind < 0.5:
                message[where] = dice.randrange(256)
            elif kind < 0.75:
                del message[where : where + dice.randint(1, 50)]
            else:
                message[where:where] = dice.randbytes(dice.randint(1, 20))
            if not message:
                break
        try:
            response = EncodeResponse.FromString(send(bytes(message)))
            assert response.states.data
            codes.append("OK")
        except grpc.RpcError as error:
            codes.append(error.code().name)
    assert set(codes) <= {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}
    assert codes.count("INVALID_ARGUMENT") > 100
    assert client.encode(request()).result().states.data


def test_slow_clients_lose_their_call(channel, client):
    hold = threading.Event()

    def silent():
        hold.wait(20)
        yield from ()

    def once():
        yield request().SerializeToString()
        hold.wait(20)

    unary = channel.stream_stream(f"/{SERVICE}/Encode")(silent())
    stream = channel.stream_stream(f"/{SERVICE}/EncodeStream")(once())
    assert client.encode(request()).result().states.data
    next(stream)
    assert refused(next, unary) == (_Code.DEADLINE_EXCEEDED, "no message arrived within 1 s")
    assert refused(next, stream) == (_Code.DEADLINE_EXCEEDED, "nothing was sent for 2 s")
    hold.set()


def test_silent_calls_give_up_their_places(folder):
    """More calls than there are places, from several connections, none of which says anything."""
    hold = threading.Event()

    def silent():
        hold.wait(30)
        yield from ()

    settings = ServerSettings(port=0, calls=20, message_timeout=60.0, idle_timeout=60.0)
    with background_server(folder, settings, "torch") as crowded:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.insecure_channel(f"127.0.0.1:{crowded.port}", options) for _ in range(3)]
        names = [f"/{SERVICE}/Encode", f"/{SERVICE}/EncodeStream", f"/{health.SERVICE_NAME}/Check"]
        calls = [one.stream_stream(name)(silent()) for one in channels for name in names for _ in range(4)]
        honest = connect(crowded)
        start = time.monotonic()
        for _ in range(20):
            assert honest.answer(request(), honest.encode(request())).states.data
        assert time.monotonic() - start < 15
        ended = [call.code() for call in calls if call.done()]
        assert set(ended) == {_Code.RESOURCE_EXHAUSTED}
        assert len(calls) - 20 <= len(ended) <= len(calls)
        for call in calls:
            call.cancel()
        hold.set()
        honest.close()
        for one in channels:
            one.close()


def test_bytes_that_are_no_http2(server, client):
    ends = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for end in ends:
        end.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert client.encode(request()).result().states.data
    for end in ends:
        end.close()


def test_clients_that_vanish_in_mid_stream(server, client):
    for _ in range(10):
        other = connect(server)
        answers = other.stream(request(one) for one in windows(50))
        next(answers)
        other.close()
    assert client.encode(request()).result(timeout=10).states.data
    deadline = time.monotonic() + 10
    while server._queue.depth and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server._queue.depth == 0


def test_a_full_queue_and_a_failing_device(folder):
    settings = ServerSettings(port=0, batch=1, queue=2, queue_per_client=2)
    with background_server(folder, settings, "torch") as slow:
        backend, open_gate = slow.served.encoder.backend, threading.Event()
        whole = type(backend).encode
        at_device = threading.Event()

        def hold(features):
            at_device.set()
            return open_gate.wait(40) and whole(backend, features)

        backend.encode = hold
        client = connect(slow)
        calls = [client.encode(request())]
        assert at_device.wait(20)  # else it may still stand in the queue when the others come
        calls += [client.encode(request()) for _ in range(5)]
        deadline = time.monotonic() + 20
        while sum(call.done() for call in calls) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        open_gate.set()
        codes = [call.code() for call in calls]
        assert codes.count(_Code.OK) == 3
        assert codes.count(_Code.RESOURCE_EXHAUSTED) == 3
        # ours waits and asks again
        assert client.answer(request(), client.encode(request())).states.data

        def break_down(features):
            raise RuntimeError("secret of the driver")

        backend.encode = break_down
        code, details = refused(client.encode(request()).result)
        assert code is _Code.UNAVAILABLE
        assert "secret" not in details
        with grpc.insecure_channel(f"127.0.0.1:{slow.port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            backend.encode = lambda features: whole(backend, features)
            assert client.encode(request()).result().states.data
            assert check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        client.close()


# Who is let in


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    return make_test_authority(tmp_path_factory.mktemp("tls") / "papers", ["pi.local", "192.168.1.9"])


def test_token_and_mutual_tls(folder, papers):
    settings = ServerSettings(
        port=0,
        token=TOKEN,
        certificate=papers["server.pem"],
        key=papers["server-key.pem"],
        client_ca=papers["ca.pem"],
    )
    own = {"ca": papers["ca.pem"], "certificate": papers["client.pem"], "key": papers["client-key.pem"]}
    with background_server(folder, settings, "torch") as server:
        good = connect(server, token=TOKEN, **own)
        assert good.describe().backend == "torch"
        for token in ("", "another-token-long-enough"):
            bad = connect(server, token=token, **own)
            assert refused(bad.encode(request()).result)[0] is _Code.UNAUTHENTICATED
            bad.close()
        without = connect(server, token=TOKEN, ca=papers["ca.pem"])
        assert refused(without.encode(request(), timeout=5).result)[0] is _Code.UNAVAILABLE
        plain = connect(server, token=TOKEN)
        assert refused(plain.encode(request(), timeout=5).result)[0] is _Code.UNAVAILABLE
        assert good.encode(request()).result().states.data
        for client in (good, without, plain):
            client.close()


def test_keys_are_private_and_nothing_is_overwritten(papers):
    for name in ("server-key.pem", "client-key.pem", "token"):
        assert papers[name].stat().st_mode & 0o777 == 0o600
    with pytest.raises(RequestError, match=r"has a ca\.pem already"):
        make_test_authority(papers["ca.pem"].parent, [])
    for name in ("a b", "", "http://pi", "-x"):
        with pytest.raises(RequestError, match="is no name of a host"):
            make_test_authority(papers["ca.pem"].parent / "other", [name])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"host": "0.0.0.0"}, "a certificate and key and a token, or say --insecure"),
        ({"host": "::", "token": TOKEN}, "give a certificate and key, or"),
        ({"host": "pi.local", "certificate": "c", "key": "k"}, "give a token, or"),
        ({"certificate": "c"}, "go together"),
        ({"client_ca": "c"}, "need a certificate of the server"),
        ({"token": "short"}, "can be guessed"),
        ({"token": "un jeton qui n'est pas assez simple"}, "printable ASCII"),
        ({"queue": 0}, "queue is a positive"),
        ({"port": 70000}, "port is 0 to 65535"),
        ({"idle_timeout": 0}, "idle_timeout is a positive"),
    ],
)
def test_unsafe_settings(settings, line, monkeypatch):
    monkeypatch.delenv("WHISPER_HAILO_TOKEN", raising=False)
    with pytest.raises(RequestError, match=line):
        ServerSettings(**settings)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"key": "absent.pem"}, r"absent\.pem: cannot be read"),
        ({"certificate": "server-key.pem"}, "is no PEM file with a certificate"),
        ({"client_ca": "token"}, "is no PEM file with a certificate"),
        ({"key": "client-key.pem"}, "cannot listen on .* certificate and key do not fit"),
    ],
)
def test_papers_that_will_not_do(folder, papers, changes, line):
    names = {"certificate": "server.pem", "key": "server-key.pem"} | changes
    settings = ServerSettings(port=0, **{what: papers["ca.pem"].with_name(name) for what, name in names.items()})
    with pytest.raises(RequestError, match=line), background_server(folder, settings, "torch"):
        pass


def test_insecure_said_in_full():
    assert ServerSettings(host="0.0.0.0", insecure=True).address == "0.0.0.0:50505"
    assert ServerSettings(host="::1").address == "[::1]:50505"


def test_a_port_that_is_taken(folder, server):
    with (
        pytest.raises(RequestError, match="the port is taken"),
        background_server(folder, ServerSettings(port=server.port), "torch"),
    ):
        pass


def test_a_service_of_a_service_is_refused(folder):
    with pytest.raises(RequestError, match="another backend than remote"), background_server(folder, backend="remote"):
        pass


# The queue


def test_clients_take_turns():
    order, gate = [], threading.Event()

    def run(batch):
        gate.wait(10)
        order.extend(batch[:, 0].tolist())
        return batch

    queue = DeviceQueue(run, limit=100, limit_per_client=50, batch=2)
    futures = [queue.submit("greedy", np.array([1.0])) for _ in range(20)]
    time.sleep(0.2)
    futures += [queue.submit("modest", np.array([2.0])) for _ in range(3)]
    gate.set()
    for future in futures:
        future.result(10)
    assert [i for i, who in enumerate(order) if who == 2.0] == [3, 5, 7]  # 2 were running already
    queue.close()


def test_each_client_has_a_share_and_cancelling_makes_room():
    gate = threading.Event()
    queue = DeviceQueue(lambda batch: gate.wait(10) and batch, limit=6, limit_per_client=3, batch=1)
    running = queue.submit("a", np.zeros(1))
    time.sleep(0.2)
    waiting = [queue.submit("a", np.zeros(1)) for _ in range(3)]
    with pytest.raises(QueueFull):
        queue.submit("a", np.zeros(1))
    waiting += [queue.submit("b", np.zeros(1)) for _ in range(3)]
    with pytest.raises(QueueFull):
        queue.submit("c", np.zeros(1))
    waiting[0].cancel()
    last = queue.submit("c", np.zeros(1))
    gate.set()
    assert running.result(10).states.shape == (1,)
    assert last.result(10).queue_seconds > 0
    queue.close()


def test_a_device_that_loses_windows_or_hangs_is_seen():
    gate = threading.Event()
    queue = DeviceQueue(lambda batch: gate.wait(10) and batch[1:], limit=6, limit_per_client=3, batch=2)
    assert queue.busy_seconds == 0
    lost = queue.submit("a", np.zeros(1))
    time.sleep(0.2)
    assert 0.05 < queue.busy_seconds < 5
    gate.set()
    with pytest.raises(RuntimeError, match="0 states for 1 windows"):
        lost.result(10)
    again = queue.submit("a", np.zeros(1))  # the thread is still there
    with pytest.raises(RuntimeError):
        again.result(10)
    queue.close()


def test_many_threads_share_one_client(server):
    client = connect(server)
    with ThreadPoolExecutor(8) as pool:
        calls = [
            (one, pool.submit(lambda x=one: client.answer(x, client.encode(x)))) for one in map(request, windows(40))
        ]
        found = [unpack_tensor(call.result().states).values for _, call in calls]
    wanted = server.served.encoder.backend.core_states(windows(40))
    output = server.served.integers[1]
    assert np.array_equal(np.stack(found), output.quantize(wanted))
    client.close()


# The verb, and the end


def start(*arguments, env=None):
    code = f"from whisper_hailo_hf.cli.main import main; main({[str(one) for one in arguments]!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def read_document(stream) -> dict:
    text = ""
    for line in stream:
        text += line
        if line == "}\n":
            break
    return json.loads(text)


def test_sigterm_finishes_what_is_under_way(folder, tmp_path):
    path = str(tmp_path / "systemd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(60)
        process = start(
            "serve", folder, "--encoder-backend", "emulator", "--port", 0, "--json", env={"NOTIFY_SOCKET": path}
        )
        try:
            assert systemd.recv(1000).startswith(b"READY=1\n")
            said = read_document(process.stdout)
            assert said["backend"] == "emulator"
            client = Connection(f"127.0.0.1:{said['port']}").open()
            reading = threading.Event()

            def asked():
                for number, one in enumerate(windows(5)):
                    yield request(one, str(number))
                reading.wait(20)

            answers = client.stream(asked())
            assert [next(answers).sample_id for _ in range(5)] == list("01234")
            process.send_signal(signal.SIGTERM)
            assert systemd.recv(1000).startswith(b"STOPPING=1")
            assert refused(next, answers) == (_Code.UNAVAILABLE, "the server is shutting down")
            reading.set()
            assert process.wait(30) == 0
            client.close()
        finally:
            process.kill()
            process.wait()
    logged = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
    assert {"serving", "draining", "stopped"} <= {one["event"] for one in logged}
    process.stdout.close()
    process.stderr.close()


def test_the_verb_refuses_in_one_line(folder, capsys, monkeypatch):
    from whisper_hailo_hf.cli.main import main

    monkeypatch.delenv("WHISPER_HAILO_TOKEN", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(folder), "--host", "0.0.0.0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: 0.0.0.0 can be reached from other machines")


def test_the_verb_makes_certificates(tmp_path, capsys):
    from whisper_hailo_hf.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["serve", "--make-certificates", str(tmp_path / "tls"), "--name", "pi.local", "--json"])
    assert ended.value.code == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"ca.pem", "server.pem", "server-key.pem", "token"}


def test_the_watchdog_is_fed_only_while_the_device_moves(monkeypatch, tmp_path):
    class Server:
        busy_seconds = 0.0

    path = str(tmp_path / "systemd")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)

    async def beats(seconds: float) -> int:
        beating = asyncio.create_task(_beat(Server()))
        await asyncio.sleep(seconds)
        beating.cancel()
        found = 0
        while True:
            try:
                assert systemd.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                return found
            found += 1

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.setblocking(False)
        assert asyncio.run(beats(0.15)) >= 2  # the socket holds ten
        Server.busy_seconds = 1.0
        assert asyncio.run(beats(0.15)) == 0


def test_systemd_is_not_needed(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify_systemd("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify_systemd("READY=1")
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_seconds() == 2.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() is None
