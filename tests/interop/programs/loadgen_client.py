"""MLPerf's LoadGen against `/classify`: loadgen_client.py SCENARIO HOST:PORT PHOTO FOLDER; prints JSON."""

import http.client
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlperf_loadgen as lg

scenario, address, photo, folder = sys.argv[1:]
body = Path(photo).read_bytes()
connections = threading.local()
wrong = []


def ask(sample):
    if not hasattr(connections, "one"):
        connections.one = http.client.HTTPConnection(address, timeout=60)
    connections.one.request("POST", "/classify", body)
    answer = connections.one.getresponse()
    text = answer.read()
    if answer.status != 200:
        wrong.append(text.decode())
    lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0)])


settings = lg.TestSettings()
settings.scenario = getattr(lg.TestScenario, scenario)
settings.mode = lg.TestMode.PerformanceOnly
settings.min_duration_ms = 15_000
settings.server_target_qps = 60
settings.server_target_latency_ns = 2 * 10**9  # of a machine that does other things too
logs = lg.LogSettings()
logs.log_output.outdir = folder
logs.log_output.copy_summary_to_stdout = False
with ThreadPoolExecutor(16) as threads:
    system = lg.ConstructSUT(lambda samples: [threads.submit(ask, each) for each in samples], lambda: None)
    library = lg.ConstructQSL(64, 64, lambda _: None, lambda _: None)
    lg.StartTestWithLogSettings(system, library, settings, logs)
    lg.DestroyQSL(library)
    lg.DestroySUT(system)
summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
sys.stdout.write(json.dumps({"valid": "Result is : VALID" in summary, "wrong": wrong, "summary": summary}))
