"""The gRPC door of a real process: start, drain, end."""

import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from alexnet_client import Client
from tests.processes import FAKE, ROOT, server_process

PHOTO = np.full((256, 256, 3), 7, np.uint8)


def test_a_taken_grpc_port_is_one_line_and_exit_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", FAKE, "--http-port=0", f"--grpc-port={taken.getsockname()[1]}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("alexnet-server: port ")
    assert "is in use by another process" in line
    assert "--grpc-port" in line


def test_sigterm_turns_health_at_once_serves_on_and_answers_what_is_in_flight(tmp_path):
    with server_process(tmp_path / "log", "--drain-delay-s=1.5", FAKE_SECONDS="0.4") as server:
        with grpc.insecure_channel(server.target) as channel, Client(server.target) as client:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            statuses = []
            ending = threading.Thread(target=lambda: statuses.append(server.end(signal.SIGTERM)))
            ending.start()
            began = time.monotonic()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert time.monotonic() - began < 1.2
            assert client.classify(PHOTO).top.index == 7, "served on while balancers take notice"
            found = list(client.classify_many([PHOTO] * 3))
            assert [each.top.index for each in found] == [7] * 3
            assert list(watch) == []
            ending.join()
        assert statuses == [0]


def test_a_second_signal_does_not_wait(tmp_path):
    with server_process(tmp_path / "log", "--drain-delay-s=30") as server:
        channel = grpc.insecure_channel(server.target)
        held = threading.Event()
        stream = channel.stream_stream("/alexnet.v1.Classifier/ClassifyStream")
        stream(iter(held.wait, True))  # one that its client never ends
        server._process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        began = time.monotonic()
        server.end(signal.SIGTERM)
        assert time.monotonic() - began < 15
        held.set()
        channel.close()
