"""An OpenAI-compatible vLLM server of a tiny model, in separate processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


class Server:
    def __init__(self, model, speculative, scheme, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = Path(log)
        env = {
            **os.environ, "SPECSAMPLE_VLLM": scheme, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "tiny",
            "--port", str(self.port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256",
            "--max-num-seqs", "16", "--speculative-config", json.dumps(speculative),
        ]  # fmt: skip
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def __enter__(self):
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(1)
        self.__exit__()
        raise AssertionError(f"the server did not come up:\n{self.log.read_text()[-4000:]}")

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)

    def _post(self, body):
        data = json.dumps({"model": "tiny", **body}).encode()
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            return urllib.request.urlopen(request, timeout=300)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.code}: {error.read().decode()[:500]}") from error

    def complete(self, body):
        """-> the text"""
        with self._post(body) as answer:
            return json.load(answer)["choices"][0]["text"]

    def cancel(self, body):
        """Read three chunks of a stream, then disconnect. -> how many were read"""
        with self._post({**body, "stream": True}) as answer:
            pieces = 0
            for line in answer:
                pieces += line.startswith(b"data: {")
                if pieces == 3:
                    break
        return pieces
