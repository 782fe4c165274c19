"""How a server runs; the ``help`` of a field is the command's help."""

from dataclasses import dataclass

from limbert.core.config import Precision, require, setting


@dataclass(frozen=True)
class ServeSettings:
    """Where the server listens, what it may cost to answer, and how much may wait."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 opens the server to the network")
    port: int = setting(8080, "port to listen on; 0 takes a free one")
    slo: float = setting(0.05, "time to answer within, such as 50ms; adaptive holds it at the 99th percentile")
    policy: str = setting(
        "adaptive", "adaptive, static:WIDTHxDEPTH, or an operating point such as balanced: what answers by default"
    )
    max_batch_tokens: int = setting(2048, "tokens a batch at most, padding included")
    max_queue: int = setting(1024, "texts that may wait; more are refused with 429")
    max_texts: int = setting(512, "texts a request at most")
    max_body: int = setting(2_000_000, "bytes of a request's body at most")
    body_timeout: float = setting(10.0, "seconds that a client has for sending a body")
    max_length: int | None = setting(None, "longest input in tokens (default: as in training)")
    api_key: str | None = setting(None, "key that requests must bring (default: none is needed)")
    workers: int = setting(1, "processes behind the port, each with its own model and a share of the threads")
    threads: int | None = setting(None, "CPU threads of a process's model (default: all cores but one, shared out)")
    device: str = setting("auto", "auto (a GPU, where torch finds one), cpu, cuda or cuda:1: where the model runs")
    precision: Precision = setting("fp32", "fp32, or bf16 autocast")
    name: str | None = setting(None, "model id in URLs (default: the name of the run's folder)")
    drain: float = setting(30.0, "seconds that requests under way get to finish when the server is told to end")

    def __post_init__(self) -> None:
        require(bool(self.host), "host", self.host, "an address")
        require(0 <= self.port < 65536, "port", self.port, "from 0 to 65535")
        require(0 < self.slo <= 3600, "slo", self.slo, "more than 0 and at most an hour, in seconds")
        require(bool(self.policy), "policy", self.policy, "adaptive, static:WIDTHxDEPTH or an operating point")
        for name in ("max_batch_tokens", "max_queue", "max_texts", "workers"):
            require(getattr(self, name) > 0, name.replace("_", " "), getattr(self, name), "at least 1")
        require(self.max_length is None or self.max_length >= 4, "maximum length", self.max_length, "at least 4 tokens")
        require(self.threads is None or self.threads > 0, "threads", self.threads, "at least 1")
        require(self.api_key is None or bool(self.api_key), "API key", self.api_key, "not empty")
        require(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")
        require(self.max_body > 0, "body limit", self.max_body, "at least 1 byte")
        require(self.body_timeout > 0, "body timeout", self.body_timeout, "more than 0 seconds")
        require(self.drain >= 0, "drain", self.drain, "0 or more seconds")
