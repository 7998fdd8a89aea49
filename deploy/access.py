"""Which of Triton's endpoints are open to clients.

Inference, health, metadata, configuration and statistics of models are: clients and load generators ask for them.
Those that administer the server are closed by a key that is made at every start and that nobody is told. Through them
any client could attach memory of this machine, write files (logging and trace take paths), and load and unload models.
"""

import secrets

CLOSED = ("shared-memory", "model-repository", "logging", "trace")
_HEADER = "drafthouse-key"


def closed_endpoints() -> tuple[str, ...]:
    """Options of `tritonserver`, the same for HTTP and gRPC."""
    restriction = f"{','.join(CLOSED)}:{_HEADER}={secrets.token_hex(32)}"
    return (f"--http-restricted-api={restriction}", f"--grpc-restricted-protocol={restriction}")
