"""Settings of a server; the ``help`` of a field is the help of its command-line option."""

from dataclasses import dataclass

from limbert.core.config import RuntimeConfig, config_field, require


@dataclass(frozen=True)
class ServeSettings(RuntimeConfig):
    """Address, policy, limits and resources of a server."""

    host: str = config_field("127.0.0.1", "address to listen on; 0.0.0.0 opens the server to the network")
    port: int = config_field(8080, "port to listen on; 0: a free port")
    slo: float = config_field(0.05, "latency target; adaptive keeps the 99th percentile below it", quantity="latency")
    policy: str = config_field(
        "adaptive", "adaptive, static:WIDTHxDEPTH, or an operating point such as balanced: what runs by default"
    )
    max_batch_tokens: int = config_field(2048, "maximum tokens per batch, padding included")
    max_queue: int = config_field(1024, "maximum queued texts; more are refused with 429")
    max_texts: int = config_field(512, "maximum texts per request")
    max_body: int = config_field(2_000_000, "maximum size of a request's body", quantity="size")
    body_timeout: float = config_field(10.0, "seconds within which a body must arrive", hidden=True)
    max_length: int | None = config_field(None, "maximum input length in tokens (default: as in training)")
    api_key: str | None = config_field(None, "key that requests must send (default: no key)", envvar="LIMBERT_API_KEY")
    cors_origins: tuple[str, ...] = config_field(
        (),
        "origin whose pages may call the server, such as https://example.com, or * for all; may be repeated",
        option="cors_origin",
        repeats=True,
    )
    workers: int = config_field(1, "processes on the port, each with its own model and queue; they divide the threads")
    threads: int | None = config_field(
        None, "CPU threads of a process's model (default: all cores but one, divided by the workers)"
    )
    device: str = config_field("auto", "auto (a GPU if there is one), cpu, cuda or cuda:1: where the model runs")
    shadow: float = config_field(
        0.0, "fraction of texts to run at full size too while nothing is queued, to measure how often labels agree"
    )
    variants: int | None = config_field(
        None, "sub-networks to load, outside torch each with its own weights (default: what fits into free memory)"
    )
    name: str | None = config_field(None, "model id in URLs (default: the name of the run's folder)")
    drain: float = config_field(
        30.0, "time for requests in progress to finish when the server shuts down", quantity="latency"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.host), "host", self.host, "an address")
        require(0 <= self.port < 65536, "port", self.port, "from 0 to 65535")
        require(0 < self.slo <= 3600, "slo", self.slo, "more than 0 and at most an hour, in seconds")
        require(bool(self.policy), "policy", self.policy, "adaptive, static:WIDTHxDEPTH or an operating point")
        for name in ("max_batch_tokens", "max_queue", "max_texts", "workers"):
            require(getattr(self, name) > 0, name.replace("_", " "), getattr(self, name), "at least 1")
        require(self.max_length is None or self.max_length >= 4, "maximum length", self.max_length, "at least 4 tokens")
        require(self.threads is None or self.threads > 0, "threads", self.threads, "at least 1")
        require(self.api_key is None or bool(self.api_key), "API key", self.api_key, "not empty")
        for origin in self.cors_origins:
            is_origin = origin == "*" or ("://" in origin and not origin.endswith("/"))
            require(is_origin, "CORS origin", origin, "* or scheme://host[:port], without a path")
        require(self.variants is None or self.variants > 0, "variants", self.variants, "at least 1")
        require(self.max_body > 0, "body limit", self.max_body, "at least 1 byte")
        require(self.body_timeout > 0, "body timeout", self.body_timeout, "more than 0 seconds")
        require(0 <= self.shadow <= 1, "shadow", self.shadow, "a fraction from 0 to 1")
        require(self.drain >= 0, "drain", self.drain, "0 or more seconds")
